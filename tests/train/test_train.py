"""The command itself, as a user starts it: it learns, stops, goes on bit for bit, and says what is wrong."""

import json
import os
import re
import shutil
import signal
import time

import pytest
import torch
from jobs import Job, start
from launch import kill_a_rank, mpirun, our_lines, run, running
from test_damage import flipped, rewritten

from mpisign.train import checkpoint
from mpisign.voting.adversary import traitors

SMALL = ("--model", "tiny", "--image-size", "32", "--batch-size", "4", "--workers", "0", "--warmup-epochs", "1")
TRAIN = ("-m", "mpisign.train", *SMALL)
EPOCH = 8  # steps of 2 ranks: 64 pictures


# A program that does something before a step of the training, on each rank.
MEDDLING = """
import os, resource, signal
from mpisign.train import training
step_of = getattr(training.Training.step, "plain", training.Training.step)
def meddled(self, pictures, labels, numbers):
    rank, step = self.comm.rank, self.position.step
    {before}
    return step_of(self, pictures, labels, numbers)
meddled.plain = step_of
training.Training.step = meddled
"""


def meddling(before="pass"):
    return MEDDLING.format(before=before)


def stopping(step, rank=1):
    """Return the program that has a rank told to stop, during the step after `step`."""
    return meddling(f"if (rank, step) == ({rank}, {step}): os.kill(os.getpid(), signal.SIGUSR1)")


def program(before):
    """Return the training with a program before it."""
    return (
        "-c",
        f"{before}\nimport sys\nfrom mpisign.train import __main__ as train\nsys.exit(train.main(sys.argv[1:]))",
    )


@pytest.fixture
def own_photos(photos, tmp_path):
    return shutil.copytree(photos, tmp_path / "photos")


def train(ranks, photos, cwd, *options, program=TRAIN[:2], **extra):
    return run(ranks, *program, "--data", str(photos), *SMALL, "--output", "run", *options, cwd=cwd, **extra)


def lines(folder, kind):
    return [line for line in map(json.loads, (folder / "run" / "log.jsonl").read_text().splitlines())
            if line["type"] == kind]  # fmt: skip


def losses(folder):
    """Return the loss of each step; each must be there once."""
    found = lines(folder, "iteration")
    assert [line["step"] for line in found] == list(range(1, len(found) + 1))
    return [line["loss"] for line in found]


def checkpoints(folder):
    return [path.name for path in checkpoint.saved(folder / "run")]


def state(folder, name):
    path = checkpoint.saved(folder / "run")[-1]
    return torch.load(path / name, weights_only=True)


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def asked(photos, *options):
    return ("--data", str(photos), *SMALL, "--output", "run", *options)


def folders(parent, *names):
    made = [parent / name for name in names]
    for folder in made:
        folder.mkdir(parents=True)
    return made


WAYS = {
    "votes": ("--tie", "random", "--workers", "1"),
    "serial-sign-sgd": ("--schedule", "serial", "--momentum", "0", "--adversaries", "1", "--adversary", "random"),
    "sgd": ("--method", "gloo", "--lr", "0.01"),
    "adamw": ("--method", "bf16", "--optimizer", "adamw", "--lr-schedule", "cosine"),
}


@pytest.fixture(scope="module")
def resumed(photos, tmp_path_factory):
    """Return for each way the folders of a training that went straight on, and of one that was stopped and resumed.

    One start trains straight on and is stopped, in all ways; another, which knows nothing of it, resumes.
    """
    top, jobs, again = tmp_path_factory.mktemp("resumed"), [], []
    for way, options in WAYS.items():
        straight, broken = folders(top, f"{way}/straight", f"{way}/broken")
        options = asked(photos, "--epochs", "2", "--lr", "1e-3", *options)
        jobs += [Job(options, straight, meddling()), Job(options, broken, stopping(10))]
        again.append(Job((*options, "--resume"), broken))
    ended = start(2, "mpisign.train.__main__", jobs)
    ended = zip(ended[::2], ended[1::2], start(2, "mpisign.train.__main__", again), strict=True)
    return top, dict(zip(WAYS, ended, strict=True))


@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_training_is_the_same_bit_for_bit(resumed, way):
    """2k steps = k steps, stop, resume, k steps; k lies in the middle of an epoch."""
    top, ended = resumed
    straight, broken = top / way / "straight", top / way / "broken"
    first, stopped, again = ended[way]
    assert first.returncode == 0, first.stderr
    assert stopped.returncode == 85, stopped.stderr
    assert "told to stop: checkpoint left in run at step 11" in stopped.stderr
    assert again.returncode == 0, again.stderr
    said = again.stdout.splitlines()
    assert said[:2] == ["run folder: run", "resumed from run/checkpoint-00000011, epoch 2, step 11"]
    assert said[-1] == "run folder: run"
    assert checkpoints(broken) == ["checkpoint-00000008", "checkpoint-00000011", "checkpoint-00000016"]
    assert losses(straight) == losses(broken)
    assert len(losses(straight)) == 2 * EPOCH
    for name in ("model.pt", "rank-0.pt", "rank-1.pt"):
        ours, resumed = state(straight, name), state(broken, name)
        for kept in (ours, resumed):
            kept.pop("config", None)
        assert same(ours, resumed), name
    assert [line["epoch"] for line in lines(broken, "epoch")] == [1, 2]
    assert [line["epoch"] for line in lines(broken, "iteration")] == [1] * EPOCH + [2] * EPOCH
    for a, b in zip(lines(straight, "epoch"), lines(broken, "epoch"), strict=True):
        assert all(a[key] == b[key] for key in ("loss", "train_top1", "top1", "validation_loss", "validated"))
    (begun, gone_on) = lines(broken, "start")
    assert (begun["checkpoint"], begun["epochs"], begun["steps"], begun["changed"]) == (None, 0, 0, {})
    assert (gone_on["checkpoint"], gone_on["epochs"], gone_on["steps"]) == ("checkpoint-00000011", 1, 11)
    assert gone_on["changed"].keys() <= {"commit"}  # somebody may work on the checkout meanwhile


def test_it_learns_and_tells_how_well(photos, tmp_path):
    ended = train(2, photos, tmp_path, "--epochs", "6", "--lr", "1e-2", "--keep", "2")
    assert ended.returncode == 0, ended.stderr
    said = ended.stdout.splitlines()
    assert said[:2] == ["run folder: run", "learning rate: 0.01, as asked for"]
    assert [line.split(":")[0] for line in said[2:-1]] == [f"epoch {i}/6" for i in range(1, 7)]
    assert said[-1] == "run folder: run"
    assert our_lines(ended.stderr) == []
    epochs = lines(tmp_path, "epoch")
    assert [line["epoch"] for line in epochs] == list(range(1, 7))
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    assert epochs[-1]["train_top1"] > 0.6  # of parts of the photographs, by models that still learn
    for line in epochs:
        shares = [step["train_top1"] for step in lines(tmp_path, "iteration") if step["epoch"] == line["epoch"]]
        assert line["train_top1"] == pytest.approx(sum(shares) / EPOCH)
    assert not any("top5" in line for line in epochs)  # of two classes all pictures are among five
    assert epochs[-1]["top1"] >= 0.75  # two photographs, told apart
    assert {line["validated"] for line in epochs} == {16}
    assert checkpoints(tmp_path) == ["checkpoint-00000040", "checkpoint-00000048"]
    assert {"data", "forward", "backward", "pack", "all-to-all", "unpack", "step"} <= set(
        lines(tmp_path, "iteration")[-1]["seconds"]
    )
    assert all(line["votes"]["sent"] > 0 == len(line["votes"]["apart"]) for line in epochs)
    assert all(0.5 < line["votes"]["least"] <= line["votes"]["most"] <= 1 for line in epochs)
    (head,) = lines(tmp_path, "train")
    assert head["config"]["data"] == "photos"
    ended = train(2, photos, tmp_path, "--epochs", "6", "--warmup-epochs", "8", "--resume")
    assert ended.returncode == 0
    assert ended.stdout.splitlines() == [
        "run folder: run", "resumed from run/checkpoint-00000048, all 6 epochs are done, step 48",
        "learning rate: 0.0001, the default of votes", "run folder: run",
    ]  # fmt: skip
    assert our_lines(ended.stderr)[0].endswith(
        "WARNING: the warm-up of 8 epochs is longer than the training of 6: the rate rises to 7.5e-05 only "
        "(--warmup-epochs)"
    )
    assert len(losses(tmp_path)) == 6 * EPOCH
    assert lines(tmp_path, "train") == [head]
    changed = lines(tmp_path, "start")[1]["changed"]
    assert (changed["lr"], changed["warmup_epochs"], changed["keep"]) == ([1e-2, 1e-4], [1.0, 8.0], [2, 3])


def test_traitors_below_half_are_outvoted_and_named_and_above_it_win(photos, tmp_path):
    few, many, long = folders(tmp_path, "few", "many", "long")
    options = ("--epochs", "5", "--batch-size", "2", "--lr", "2e-3", "--adversaries")
    longer = ("1", "--epochs", "40", "--batch-size", "8", "--checkpoint-every", "40")
    jobs = [Job(asked(photos, *options, "1"), few), Job(asked(photos, *options, "2"), many),
            Job(asked(photos, *options, *longer), long)]  # fmt: skip
    found = start(3, "mpisign.train.__main__", jobs)
    for ended in found:
        assert ended.returncode == 0, ended.stderr
    assert lines(few, "epoch")[-1]["loss"] < 1 < 2 < lines(many, "epoch")[-1]["loss"]
    # It takes larger batches and more steps to say which one it is.
    (guilty,) = traitors(1, 3, seed=0)
    assert lines(long, "iteration")[-1]["votes"]["apart"] == lines(long, "epoch")[-1]["votes"]["apart"] == [guilty]
    assert found[2].stdout.splitlines()[-2].endswith(f", rank {guilty} stands apart")
    assert f"rank {guilty} agrees with the votes far less than the others do" in found[2].stderr


@pytest.fixture(scope="module")
def stopped(photos, tmp_path_factory):
    """Return the folders of trainings by two ranks that were told to stop after 8 and after 11 steps."""
    at_the_end, amid = folders(tmp_path_factory.mktemp("stopped"), "at the end", "amid")
    jobs = [Job(asked(photos, "--epochs", "1"), at_the_end, stopping(7)),
            Job(asked(photos, "--epochs", "2"), amid, stopping(10))]  # fmt: skip
    assert [ended.returncode for ended in start(2, "mpisign.train.__main__", jobs)] == [85, 85]
    return at_the_end, amid


def test_fewer_ranks_go_on_and_say_what_is_lost(photos, stopped, tmp_path):
    folder = shutil.copytree(stopped[1], tmp_path / "copy")
    ended = train(1, photos, folder, "--epochs", "2", "--resume")
    assert ended.returncode == 0, ended.stderr
    assert "it was left by 2 ranks: the momentum of rank 1 is lost" in ended.stderr
    assert len(losses(folder)) == 11 + (64 - 3 * 8) // 4  # the same pictures are left
    (head,) = lines(folder, "train")
    assert head["machine"]["ranks"] == 2
    assert lines(folder, "start")[-1]["changed"]["ranks"] == [2, 1]


def test_more_ranks_go_on_and_say_what_is_lost(photos, stopped, tmp_path):
    """Of an epoch that two ranks saw all 64 pictures of, each of three would have had 21."""
    seen, amid = (shutil.copytree(folder, tmp_path / folder.name) for folder in stopped)
    jobs = [Job(asked(photos, "--epochs", "2", "--resume", "--lr", "0.5"), amid),
            Job(asked(photos, "--epochs", "2", "--resume", "--weight-decay", "0.25"), seen)]  # fmt: skip
    ended, of_seen = start(3, "mpisign.train.__main__", jobs)
    assert ended.returncode == 0, ended.stderr
    assert "it was left by 2 ranks: rank 2 begins without momentum" in ended.stderr
    assert "lr was 0.0001, is now 0.5" in ended.stderr
    assert of_seen.returncode == 0, of_seen.stderr
    assert "weight_decay was 0.0001, is now 0.25" in of_seen.stderr
    assert state(seen, "model.pt")["optimizer"]["param_groups"][0]["weight_decay"] == 0.25
    assert [line["epoch"] for line in lines(seen, "epoch")] == [1, 2]
    changed = lines(seen, "start")[-1]["changed"]
    assert (changed["ranks"], changed["weight_decay"]) == ([2, 3], [1e-4, 0.25])
    assert "lr" not in changed


def truncate(picture):
    data = picture.read_bytes()
    picture.write_bytes(data[: len(data) * 2 // 3])
    return picture


PARTS = ("train", "val")


@pytest.fixture(scope="module")
def truncated(photos, tmp_path_factory):
    """Return for each part a copy of the photos in which one is truncated, and that one."""
    top = tmp_path_factory.mktemp("truncated")
    copies = {part: shutil.copytree(photos, top / part) for part in PARTS}
    return {part: (copy, truncate(sorted((copy / part / "china").iterdir())[3])) for part, copy in copies.items()}


@pytest.mark.parametrize("part", PARTS)
def test_a_truncated_picture_is_named_and_stops(truncated, tmp_path, part):
    pictures, broken = truncated[part]
    ended = train(2, pictures, tmp_path, "--epochs", "1", "--workers", "1")
    assert ended.returncode not in (0, 2)
    (line,) = our_lines(ended.stderr)
    assert f"{broken}: image file is truncated" in line
    assert "--broken skip" in line


def test_a_truncated_picture_is_named_and_left_out(truncated, tmp_path):
    made = folders(tmp_path, *PARTS)
    jobs = [Job(asked(truncated[part][0], "--epochs", "2", "--broken", "skip"), folder)
            for part, folder in zip(PARTS, made, strict=True)]  # fmt: skip
    for part, folder, ended in zip(PARTS, made, start(2, "mpisign.train.__main__", jobs), strict=True):
        assert ended.returncode == 0, ended.stderr
        assert f"leaves out {truncated[part][1]}: image file is truncated" in ended.stderr
        epochs = [line for line in ended.stdout.splitlines() if line.startswith("epoch")]
        assert len(epochs) == 2
        assert all(line.endswith(", 1 pictures left out") for line in epochs)
        line = lines(folder, "epoch")[-1]
        assert line["validated"] == 16 - (part == "val")
        right = line["train_top1"] * (64 - (part == "train"))
        assert right == pytest.approx(round(right))  # the one that was left out is not counted as wrong


IDLE = """
import torch
from torch import nn
from mpisign.workload import models
build = models.build
class WithIdle(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.idle = model, nn.Linear(3, 3)
    def forward(self, x):
        output = self.model(x)  # and every picture is said to be of the first class
        return output + 100 * (torch.arange(output.shape[1], device=output.device) == 0)
models.build = lambda *arguments, **named: WithIdle(build(*arguments, **named))
"""


ALL_BUT_ONE = "labels.fill_(0); labels[0] = rank"  # of 2 ranks' 8 pictures are of the first class


@pytest.fixture(scope="module")
def odd(photos, tmp_path_factory):
    """Return the folder and end of trainings: the loss is no number once, idle parameters, all defaults of sgd.

    And two that differ in the method alone: one sums what is divided before, the other averages by itself.
    """
    endless, idle, dense, summed, averaged = folders(
        tmp_path_factory.mktemp("odd"), "endless", "idle", "dense", "summed", "averaged"
    )
    nan = meddling("if (rank, step) == (1, 9): pictures.fill_(float('nan'))")
    jobs = [Job(asked(photos, "--epochs", "2"), endless, nan),
            Job(asked(photos, "--epochs", "1", "--method", "gloo"), dense, meddling()),
            Job(asked(photos, "--epochs", "1", "--method", "mpi", "--lr", "1e-3"), summed, meddling()),
            Job(asked(photos, "--epochs", "1", "--method", "fp16", "--lr", "1e-3"), averaged, meddling()),
            Job(asked(photos, "--epochs", "1", "--keep", "9"), idle, meddling(ALL_BUT_ONE) + IDLE)]  # fmt: skip
    return list(zip((endless, dense, summed, averaged, idle), start(2, "mpisign.train.__main__", jobs), strict=True))


def test_a_loss_that_is_not_finite_stops_all_ranks_and_names_the_step(odd):
    folder, ended = odd[0]
    assert ended.returncode == 1
    (line,) = our_lines(ended.stderr)
    assert line.endswith("step 10 (epoch 2): the loss is not finite on rank 1; that step was not taken")
    assert checkpoints(folder) == ["checkpoint-00000008"]
    assert len(losses(folder)) == 9


def test_the_rate_of_dense_sgd_is_that_of_its_batch_and_told(odd):
    folder, ended = odd[1]
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[1] == (
        "learning rate: 0.003125, the default of dense sgd, 0.1 * 8 / 256: a step has 8 pictures of all ranks"
    )
    assert lines(folder, "train")[0]["config"]["lr"] == lines(folder, "iteration")[-1]["lr"] == 0.003125


def test_what_only_sums_comes_to_the_same_as_what_averages(odd):
    """The weights go the same way and as far: with a loss that was not divided it would be twice as far."""
    from mpisign.workload import models

    torch.manual_seed(0)
    begin = torch.cat([weight.detach().flatten() for weight in models.build("tiny", 32, classes=2).parameters()])
    names = [name for name, _ in models.build("tiny", 32, classes=2).named_parameters()]
    ends = []
    for folder, ended in odd[2:4]:
        assert ended.returncode == 0, ended.stderr
        kept = state(folder, "model.pt")["model"]
        ends.append(torch.cat([kept[name].flatten() for name in names]) - begin)
    assert ends[1].norm() > 0
    assert (ends[0] - ends[1]).norm() < 0.1 * ends[1].norm()


def test_parameters_without_a_gradient_stay_as_they_are(odd):
    folder, ended = odd[4]  # what it changes of the program stays: it is the last
    assert ended.returncode == 0, ended.stderr
    assert "no gradient, so left as they are: idle.weight, idle.bias" in ended.stderr
    torch.manual_seed(0)
    from mpisign.workload import models

    models.build("tiny", 32, classes=2)
    assert torch.equal(state(folder, "model.pt")["model"]["idle.weight"], torch.nn.Linear(3, 3).weight)


def test_the_accuracy_in_training_is_that_of_all_ranks(odd):
    folder, ended = odd[4]  # what it changes of the program stays: it is the last
    assert [line["train_top1"] for line in lines(folder, "iteration")] == [7 / 8] * EPOCH
    (epoch,) = lines(folder, "epoch")
    assert epoch["train_top1"] == 7 / 8
    assert "epoch 1/1: training loss 12." in ended.stdout
    assert ", top-1 87.50%; validation loss" in ended.stdout


@pytest.mark.parametrize("schedule", ["serial", "overlap"])
def test_a_vote_that_fails_on_one_rank_ends_the_job_with_its_traceback(photos, tmp_path, schedule):
    """The other rank waits for it in a collective."""
    program = """
import sys
from mpi4py import MPI
from mpisign.train import __main__ as train
from mpisign.voting import hook
vote_bucket = hook.VoteState.vote_bucket
def broken(self, bucket):
    if self.steps == 9 and MPI.COMM_WORLD.rank == 1:
        raise ArithmeticError("no vote today")
    return vote_bucket(self, bucket)
hook.VoteState.vote_bucket = broken
sys.exit(train.main(sys.argv[1:]))
"""
    ended = train(2, photos, tmp_path, "--epochs", "2", "--schedule", schedule, program=("-c", program))
    assert ended.returncode not in (0, 2, 85)
    assert "rank 1 failed, the job ends" in ended.stderr
    assert "ArithmeticError: no vote today" in ended.stderr
    assert checkpoints(tmp_path) == ["checkpoint-00000008"]


def test_a_full_disk_keeps_the_old_checkpoint_and_is_told(photos, tmp_path):
    """A limit on the size of files does as a full disk would; the log is below it."""
    full = meddling("step == 9 and resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))")
    ended = train(2, photos, tmp_path, "--epochs", "2", program=program(full))
    assert ended.returncode == 1, ended.stderr
    said = "\n".join(our_lines(ended.stderr))
    assert "WARNING: no checkpoint at step 16: " in said
    assert "WARNING: the log could not be written: " in said
    assert "epoch 2/2" in ended.stdout
    assert checkpoints(tmp_path) == ["checkpoint-00000008"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["best.pt", "checkpoint-00000008", "log.jsonl"]
    assert len(losses(tmp_path)) >= 8  # whole lines, all of them
    ended = train(2, photos, tmp_path, "--epochs", "2", "--resume")
    assert ended.returncode == 0, ended.stderr
    assert len(losses(tmp_path)) == 16


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_rank_and_ctrl_c_leave_whole_files_that_can_be_resumed(photos, tmp_path, how):
    command = mpirun(2, *TRAIN, "--workers", "1", "--data", str(photos), "--epochs", "100000", "--output", "run")
    with running(command, tmp_path) as job:
        for said in ("run folder", "learning rate", "epoch 1/", "epoch 2/", "epoch 3/"):
            assert job.stdout.readline().startswith(said)
        time.sleep(0.1)
        if how == signal.SIGKILL:
            kill_a_rank(f"--data {photos}", "mpirun")
        else:
            job.send_signal(how)
        job.communicate(timeout=60)
    assert job.returncode != 0
    before = int(checkpoints(tmp_path)[-1].removeprefix("checkpoint-"))
    ended = train(2, photos, tmp_path, "--epochs", str(before // EPOCH + 1), "--resume")
    assert ended.returncode == 0, ended.stderr
    assert len(losses(tmp_path)) == before + EPOCH
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


def spoil(folder, how):
    """Spoil a checkpoint; what is "foreign" or "code" has the right digests."""
    path = checkpoint.saved(folder / "run")[-1]
    if how == "cut":
        (path / "model.pt").write_bytes((path / "model.pt").read_bytes()[:1000])
    elif how == "lacking":
        (path / "rank-0.pt").unlink()
    elif how == "foreign":
        rewritten(path, "model.pt", {"weights": torch.zeros(3)})
    elif how == "code":
        rewritten(path, "model.pt", {"format": checkpoint.FORMAT, "ranks": 1, "step": 16, "call": os.system})
    elif how == "own":
        rewritten(path, "rank-0.pt", b"nonsense")
    return path


@pytest.fixture(scope="session")
def finished(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    ended = train(1, photos, folder, "--epochs", "1")
    assert ended.returncode == 0, ended.stderr
    return folder


USELESS = [
    ("cut", [], " is damaged: model.pt is not what was written"),
    ("own", [], "/rank-0.pt cannot be read"),
    ("lacking", [], " lacks rank-0.pt"),
    ("foreign", [], "cannot be read: it does not tell its format, ranks and step"),
    ("code", [], "cannot be read: Weights only load failed"),
    ("", ["--model", "resnet18"], "holds tiny, not resnet18"),
    ("", ["--method", "gloo"], "holds momentum of votes (--method vote-alltoall): use a new --output for gloo"),
    ("renamed", [], "was trained on other classes: 2 of them, here 2, or other names"),
]


@pytest.fixture(scope="module")
def refused(photos, finished, tmp_path_factory):
    """Return the path of each checkpoint of no use, from its folder, and how a training from it ended."""
    top, jobs, paths = tmp_path_factory.mktemp("refused"), [], []
    others = shutil.copytree(photos, top / "photos")
    for part in PARTS:
        (others / part / "china").rename(others / part / "temple")
    for number, (how, options, _) in enumerate(USELESS):
        folder = shutil.copytree(finished, top / str(number))
        paths.append(spoil(folder, how).relative_to(folder))
        pictures = others if how == "renamed" else photos
        jobs.append(Job(asked(pictures, "--epochs", "2", "--resume", *options), folder))
    return list(zip(paths, start(2, "mpisign.train.__main__", jobs), strict=True))


@pytest.mark.parametrize("number", range(len(USELESS)), ids=[f"{how}{options}" for how, options, _ in USELESS])
def test_a_checkpoint_of_no_use_is_refused(refused, number):
    path, ended = refused[number]
    assert ended.returncode == 2, ended.stderr
    (line,) = our_lines(ended.stderr)
    assert re.search(rf"resume: (no checkpoint in run is whole: )?{path}", line)
    assert USELESS[number][2] in line


def test_an_older_checkpoint_is_taken_where_the_newest_is_damaged(photos, resumed, tmp_path):
    """By all ranks, said in one line; the damaged one is set aside, and counts no longer as one of those to keep."""
    folder = shutil.copytree(resumed[0] / "votes" / "straight", tmp_path / "copy")
    newest = checkpoint.saved(folder / "run")[-1]
    own = newest / "rank-1.pt"
    own.write_bytes(flipped(own.read_bytes(), 8 * 1000))
    before = losses(folder)
    ended = train(2, photos, folder, "--epochs", "2", "--lr", "1e-3", *WAYS["votes"], "--keep", "1", "--resume")
    assert ended.returncode == 0, ended.stderr
    assert "resumed from run/checkpoint-00000008, epoch 2, step 8" in ended.stdout
    (line,) = our_lines(ended.stderr)
    assert line.endswith("WARNING: run/checkpoint-00000016 is damaged: rank-1.pt is not what was written; an older one "
                         "is taken, and this is called broken-checkpoint-00000016 now")  # fmt: skip
    assert losses(folder) == before
    assert checkpoints(folder) == ["checkpoint-00000016"]
    assert (folder / "run" / "broken-checkpoint-00000016" / "rank-1.pt").exists()


def test_a_torn_line_of_the_log_is_dropped(photos, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "copy")
    with (folder / "run" / "log.jsonl").open("a") as log:
        log.write('{"type": "iteration", "seconds": {"data": 1}')
    ended = train(1, photos, folder, "--epochs", "2", "--resume")
    assert ended.returncode == 0, ended.stderr
    assert len(losses(folder)) == 2 * 16


FAULTY = [
    (["--data", "nowhere"], "data: nowhere/train is no folder"),
    (["--data", ""], "data: tell the folder"),
    (["--model", "resnet5000"], "model: unknown name 'resnet5000'"),
    (["--method", "none"], "invalid choice: 'none'"),
    (["--method", "nccl"], "method: nccl cannot run: NCCL needs CUDA devices"),
    (["--optimizer", "adamw"], "optimizer: adamw needs the mean"),
    (["--batch-size", "64"], "batch_size: 64 pictures on each of 2 ranks are more than the 64"),
    (["--adversaries", "3"], "adversaries: 3 of 2 ranks"),
    (["--lr", "-1"], "-1 is no finite number"),
    (["--lr", "nan"], "nan is no finite number"),
    (["--output", "/dev/null"], "output: /dev/null is not a folder"),
    (["--output", "full"], "output: full is not empty; --resume goes on"),
    (["--output", "full", "--resume"], "output: full/log.jsonl has format 1, not 2; move it away"),
    (["--output", "", "--resume"], "resume: tell the folder"),
]


@pytest.fixture(scope="module")
def faulty(photos, tmp_path_factory):
    """Return how a training ended for each of FAULTY."""
    top, jobs = tmp_path_factory.mktemp("faulty"), []
    for number, (options, _) in enumerate(FAULTY):
        (full,) = folders(top, f"{number}/full")
        (full / "log.jsonl").write_text('{"type": "train", "format": 1}\n')
        jobs.append(Job(asked(photos, *options), full.parent))
    return start(2, "mpisign.train.__main__", jobs)


@pytest.mark.parametrize("number", range(len(FAULTY)), ids=["-".join(options) for options, _ in FAULTY])
def test_bad_input_gets_one_line_and_code_2(faulty, number):
    ended = faulty[number]
    assert ended.returncode == 2
    (line,) = our_lines(ended.stderr)
    assert FAULTY[number][1] in line
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""
    assert ended.files == ["full"]


def test_bad_input_ends_a_job_with_code_2(photos, tmp_path):
    ended = train(2, photos, tmp_path, "--batch-size", "64")
    assert ended.returncode == 2
    (line,) = our_lines(ended.stderr)
    assert FAULTY[6][1] in line
    assert list(tmp_path.iterdir()) == []


def test_ranks_that_see_other_pictures_are_refused(photos, own_photos, tmp_path):
    """A class folder is missing on one rank, as on a node whose copy is not whole."""
    shutil.rmtree(own_photos / "train" / "flower")
    shutil.rmtree(own_photos / "val" / "flower")
    elsewhere = f"""
from mpisign.train import setting
settle = setting.settle
def elsewhere(config, comm):
    import dataclasses
    return settle(dataclasses.replace(config, data={str(own_photos)!r}) if comm.rank == 1 else config, comm)
setting.settle = elsewhere
"""
    ended = train(3, photos, tmp_path, program=program(elsewhere))
    assert ended.returncode == 2
    (line,) = our_lines(ended.stderr)
    assert line.endswith("data: rank 1 sees 1 classes and 32 pictures, rank 0 2 and 64 in train/")
