"""The command itself, as a user starts it: it learns, stops, goes on bit for bit, and says what is wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from launch import environment, mpirun, our_lines, run

from mpisign.train import checkpoint
from mpisign.train.recipe import Recipe

SMALL = ("--model", "tiny", "--image-size", "32", "--batch-size", "4", "--workers", "0", "--warmup-epochs", "1")
TRAIN = ("-m", "mpisign.train", *SMALL)
EPOCH = 8  # steps of 2 ranks: 64 pictures

# A program that does something before or after a step of the training on some rank.
MEDDLING = """
import os, resource, signal, sys
from mpisign.train import __main__ as train, training
iterate = training.Training._iterate
def meddled(self, *arguments):
    rank, step = self.comm.rank, self.position.step
    {before}
    return iterate(self, *arguments)
training.Training._iterate = meddled
sys.exit(train.main(sys.argv[1:]))
"""


def stopping(step, rank=1):
    """Return the program that is told to stop, on one rank, during the step after `step`."""
    return "-c", MEDDLING.format(before=f"if (rank, step) == ({rank}, {step}): os.kill(os.getpid(), signal.SIGUSR1)")


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "photos"
    command = [sys.executable, "-m", "mpisign", "photos", folder, "--validate", "0.2"]
    subprocess.run(command, check=True, capture_output=True)
    return folder


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
    return [path.name for path in checkpoint.found(folder / "run")]


def state(folder, name):
    path = checkpoint.found(folder / "run")[-1]
    return torch.load(path / name, weights_only=True)


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize(
    "options",
    [
        ("--tie", "random", "--workers", "1"),
        ("--schedule", "serial", "--momentum", "0", "--adversaries", "1", "--adversary", "random"),
        ("--method", "gloo", "--lr", "0.01"),
        ("--method", "bf16", "--optimizer", "adamw", "--lr-schedule", "cosine"),
    ],
    ids=["votes", "serial-sign-sgd", "sgd", "adamw"],
)
def test_a_resumed_training_is_the_same_bit_for_bit(photos, tmp_path, options):
    """2k steps = k steps, stop, resume, k steps; k lies in the middle of an epoch."""
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    straight.mkdir()
    broken.mkdir()
    ended = train(2, photos, straight, "--epochs", "2", "--lr", "1e-3", *options)
    assert ended.returncode == 0, ended.stderr
    ended = train(2, photos, broken, "--epochs", "2", "--lr", "1e-3", *options, program=stopping(10))
    assert ended.returncode == 85, ended.stderr
    assert "told to stop: checkpoint left in run at step 11" in ended.stderr
    assert checkpoints(broken) == ["checkpoint-00000008", "checkpoint-00000011"]
    ended = train(2, photos, broken, "--epochs", "2", "--lr", "1e-3", *options, "--resume")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("resumed from run/checkpoint-00000011, epoch 2, step 11\n")
    assert losses(straight) == losses(broken)
    assert len(losses(straight)) == 2 * EPOCH
    for name in ("model.pt", "rank-0.pt", "rank-1.pt"):
        ours, resumed = state(straight, name), state(broken, name)
        for kept in (ours, resumed):
            kept.pop("config", None)
        assert same(ours, resumed), name
    assert [line["epoch"] for line in lines(broken, "epoch")] == [0, 1]
    for a, b in zip(lines(straight, "epoch"), lines(broken, "epoch"), strict=True):
        assert all(a[key] == b[key] for key in ("loss", "top1", "top5", "validation_loss", "validated"))


def test_it_learns_and_tells_how_well(photos, tmp_path):
    ended = train(2, photos, tmp_path, "--epochs", "6", "--lr", "1e-2", "--keep", "2")
    assert ended.returncode == 0, ended.stderr
    assert [line.split(":")[0] for line in ended.stdout.splitlines()] == [f"epoch {i}/6" for i in range(1, 7)]
    epochs = lines(tmp_path, "epoch")
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    assert epochs[-1]["top1"] >= 0.75  # two photographs, told apart
    assert {line["validated"] for line in epochs} == {16}
    assert checkpoints(tmp_path) == ["checkpoint-00000040", "checkpoint-00000048"]
    assert {"data", "forward", "backward", "pack", "all-to-all", "unpack", "step"} <= set(
        lines(tmp_path, "iteration")[-1]["seconds"]
    )
    (head,) = lines(tmp_path, "train")
    assert head["config"]["data"] == "photos"
    ended = train(2, photos, tmp_path, "--epochs", "6", "--resume")
    assert ended.returncode == 0
    assert ended.stdout == "resumed from run/checkpoint-00000048, epoch 7, step 48\n"
    assert len(losses(tmp_path)) == 6 * EPOCH


def test_traitors_below_half_are_outvoted_and_above_it_win(photos, tmp_path):
    reached = {}
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        ended = train(3, photos, folder, "--epochs", "5", "--batch-size", "2", "--lr", "2e-3", "--adversaries",
                      str(number))  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        reached[number] = lines(folder, "epoch")[-1]["loss"]
    assert reached[1] < 1 < 2 < reached[2]


def test_another_number_of_ranks_goes_on_and_says_what_is_lost(photos, tmp_path):
    assert train(2, photos, tmp_path, "--epochs", "2", program=stopping(10)).returncode == 85
    fewer, more = (shutil.copytree(tmp_path, tmp_path / name) for name in ("fewer", "more"))
    ended = train(1, photos, fewer, "--epochs", "2", "--resume")
    assert ended.returncode == 0, ended.stderr
    assert "it was left by 2 ranks: the momentum of ranks 1 to 1 is lost" in ended.stderr
    assert len(losses(fewer)) == 11 + (64 - 3 * 8) // 4  # the same pictures are left
    ended = train(3, photos, more, "--epochs", "2", "--resume", "--lr", "0.5")
    assert ended.returncode == 0, ended.stderr
    assert "it was left by 2 ranks: ranks 2 to 2 begin without momentum" in ended.stderr
    assert "lr was None, is now 0.5" in ended.stderr


def test_an_epoch_that_was_all_seen_goes_on_with_more_ranks_and_another_decay(photos, tmp_path):
    """Two ranks saw all 64 pictures; each of three would have had 21 of them."""
    assert train(2, photos, tmp_path, "--epochs", "1", program=stopping(7)).returncode == 85
    ended = train(3, photos, tmp_path, "--epochs", "2", "--resume", "--weight-decay", "0.25")
    assert ended.returncode == 0, ended.stderr
    assert "weight_decay was 0.0001, is now 0.25" in ended.stderr
    assert state(tmp_path, "model.pt")["optimizer"]["param_groups"][0]["weight_decay"] == 0.25
    assert [line["epoch"] for line in lines(tmp_path, "epoch")] == [0, 1]


def truncate(picture):
    data = picture.read_bytes()
    picture.write_bytes(data[: len(data) * 2 // 3])
    return picture


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_truncated_picture_is_named_and_stops_or_is_left_out(own_photos, tmp_path, part):
    broken = truncate(sorted((own_photos / part / "china").iterdir())[3])
    ended = train(2, own_photos, tmp_path, "--epochs", "1", "--workers", "1")
    assert ended.returncode not in (0, 2)
    (line,) = our_lines(ended.stderr)
    assert f"{broken}: image file is truncated" in line
    assert "--broken skip" in line
    shutil.rmtree(tmp_path / "run")
    ended = train(2, own_photos, tmp_path, "--epochs", "2", "--broken", "skip")
    assert ended.returncode == 0, ended.stderr
    assert f"leaves out {broken}: image file is truncated" in ended.stderr
    assert all(line.endswith(", 1 pictures left out") for line in ended.stdout.splitlines())
    assert lines(tmp_path, "epoch")[-1]["validated"] == 16 - (part == "val")


def test_a_loss_that_is_not_finite_stops_all_ranks_and_names_the_step(photos, tmp_path):
    program = MEDDLING.format(before="if (rank, step) == (1, 9): arguments[0].fill_(float('nan'))")
    ended = train(2, photos, tmp_path, "--epochs", "2", program=("-c", program))
    assert ended.returncode == 1
    (line,) = our_lines(ended.stderr)
    assert line.endswith("step 10 (epoch 2): the loss is not finite on rank 1; that step was not taken")
    assert checkpoints(tmp_path) == ["checkpoint-00000008"]
    assert len(losses(tmp_path)) == 9


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
    program = MEDDLING.format(
        before="step == 9 and resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))"
    )
    ended = train(2, photos, tmp_path, "--epochs", "2", program=("-c", program))
    assert ended.returncode == 1, ended.stderr
    said = "\n".join(our_lines(ended.stderr))
    assert "WARNING: no checkpoint at step 16: " in said
    assert "WARNING: the log could not be written: " in said
    assert "epoch 2/2" in ended.stdout
    assert checkpoints(tmp_path) == ["checkpoint-00000008"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint-00000008", "log.jsonl"]
    assert len(losses(tmp_path)) >= 8  # whole lines, all of them
    ended = train(2, photos, tmp_path, "--epochs", "2", "--resume")
    assert ended.returncode == 0, ended.stderr
    assert len(losses(tmp_path)) == 16


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_rank_and_ctrl_c_leave_whole_files_that_can_be_resumed(photos, tmp_path, how):
    command = mpirun(2, *TRAIN, "--workers", "1", "--data", str(photos), "--epochs", "100000", "--output", "run")
    job = subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE,
                           text=True, start_new_session=True)  # fmt: skip
    try:
        for _ in range(3):
            assert job.stdout.readline().startswith("epoch")
        time.sleep(0.1)
        if how == signal.SIGKILL:
            listed = subprocess.run(["ps", "-wweo", "pid,args"], capture_output=True, text=True, check=True).stdout
            ranks = [line for line in listed.splitlines() if f"--data {photos}" in line and "mpirun" not in line]
            os.kill(int(ranks[-1].split()[0]), how)
        else:
            job.send_signal(how)
        job.communicate(timeout=60)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    assert job.returncode != 0
    before = int(checkpoints(tmp_path)[-1].removeprefix("checkpoint-"))
    ended = train(2, photos, tmp_path, "--epochs", str(before // EPOCH + 1), "--resume")
    assert ended.returncode == 0, ended.stderr
    assert len(losses(tmp_path)) == before + EPOCH
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


def spoil(folder, how):
    path = checkpoint.found(folder / "run")[-1]
    if how == "cut":
        (path / "model.pt").write_bytes((path / "model.pt").read_bytes()[:1000])
    elif how == "own":
        (path / "rank-0.pt").write_bytes(b"nonsense")
    elif how == "lacking":
        (path / "rank-0.pt").unlink()
    elif how == "foreign":
        torch.save({"weights": torch.zeros(3)}, path / "model.pt")
    elif how == "code":
        torch.save({"format": 1, "ranks": 1, "call": os.system}, path / "model.pt")
    return path


@pytest.fixture(scope="session")
def finished(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    ended = train(1, photos, folder, "--epochs", "1")
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.mark.parametrize(
    ("how", "options", "said"),
    [
        ("cut", [], "cannot be read"),
        ("own", [], "/rank-0.pt cannot be read"),
        ("lacking", [], "lacks rank-0.pt"),
        ("foreign", [], "cannot be read: 'ranks'"),
        ("code", [], "cannot be read: Weights only load failed"),
        ("", ["--model", "resnet18"], "holds tiny, not resnet18"),
        ("", ["--method", "gloo"], "was trained by vote-alltoall"),
    ],
)
def test_a_checkpoint_of_no_use_is_refused(photos, finished, tmp_path, how, options, said):
    folder = shutil.copytree(finished, tmp_path / "copy")
    path = spoil(folder, how)
    ended = train(2, photos, folder, "--epochs", "2", "--resume", *options)
    assert ended.returncode == 2, ended.stderr
    (line,) = our_lines(ended.stderr)
    assert f"resume: {path.relative_to(folder)}" in line
    assert said in line


def test_a_checkpoint_of_other_classes_is_refused(own_photos, finished, tmp_path):
    for part in ("train", "val"):
        (own_photos / part / "china").rename(own_photos / part / "temple")
    folder = shutil.copytree(finished, tmp_path / "copy")
    ended = train(1, own_photos, folder, "--epochs", "2", "--resume")
    assert ended.returncode == 2
    assert "was trained on other classes: 2 of them, here 2, or other names" in ended.stderr


def test_a_torn_line_of_the_log_is_dropped(photos, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "copy")
    with (folder / "run" / "log.jsonl").open("a") as log:
        log.write('{"type": "iteration", "seconds": {"data": 1}')
    ended = train(1, photos, folder, "--epochs", "2", "--resume")
    assert ended.returncode == 0, ended.stderr
    assert len(losses(folder)) == 2 * 16


@pytest.mark.parametrize(
    ("options", "said"),
    [
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
        (["--output", "", "--resume"], "resume: tell the folder"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_bad_input_gets_one_line_and_code_2(photos, tmp_path, options, said):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").touch()
    ended = train(2, photos, tmp_path, *options)
    assert ended.returncode == 2
    (line,) = our_lines(ended.stderr)
    assert said in line
    assert "Traceback" not in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_ranks_that_see_other_pictures_are_refused(photos, own_photos, tmp_path):
    """A class folder is missing on one rank, as on a node whose copy is not whole."""
    shutil.rmtree(own_photos / "train" / "flower")
    shutil.rmtree(own_photos / "val" / "flower")
    program = f"""
import sys
from mpisign.train import __main__ as train
settle = train.settle
def elsewhere(config, comm):
    import dataclasses
    return settle(dataclasses.replace(config, data={str(own_photos)!r}) if comm.rank == 1 else config, comm)
train.settle = elsewhere
sys.exit(train.main(sys.argv[1:]))
"""
    ended = train(3, photos, tmp_path, program=("-c", program))
    assert ended.returncode == 2
    (line,) = our_lines(ended.stderr)
    assert line.endswith("data: rank 1 sees 1 classes and 32 pictures, rank 0 2 and 64 in train/")


def test_parameters_without_a_gradient_stay_as_they_are(photos, tmp_path):
    program = """
import sys
from torch import nn
from mpisign.train import __main__ as train
from mpisign.workload import models
build = models.build
class WithIdle(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.idle = model, nn.Linear(3, 3)
    def forward(self, x):
        return self.model(x)
models.build = lambda *arguments: WithIdle(build(*arguments))
sys.exit(train.main(sys.argv[1:]))
"""
    ended = train(2, photos, tmp_path, "--epochs", "1", "--keep", "9", program=("-c", program))
    assert ended.returncode == 0, ended.stderr
    assert "no gradient, so left as they are: idle.weight, idle.bias" in ended.stderr
    torch.manual_seed(0)
    from mpisign.workload import models

    models.build("tiny", 32, 2)
    assert torch.equal(state(tmp_path, "model.pt")["model"]["idle.weight"], torch.nn.Linear(3, 3).weight)


def test_the_rate_is_the_papers():
    recipe = Recipe()
    assert recipe.base_rate == 1e-4
    assert [recipe.rate(epochs) for epochs in (0, 2.5, 5, 29.9)] == pytest.approx([0, 5e-5, 1e-4, 1e-4])
    assert [recipe.rate(epochs) for epochs in (30, 59, 60, 80)] == pytest.approx([1e-5, 1e-5, 1e-6, 1e-6])
    cosine = Recipe(method="gloo", lr_schedule="cosine", epochs=10, warmup_epochs=0.0)
    assert [cosine.rate(epochs) for epochs in (0, 5, 10)] == pytest.approx([0.1, 0.05, 0], abs=1e-12)
    assert (recipe.batch_size, recipe.momentum, recipe.weight_decay, recipe.epochs) == (128, 0.9, 1e-4, 80)
