"""Checkpoints that are damaged, or made up: each is refused in one line, or an older one is taken."""

import dataclasses
import random
import shutil
from types import SimpleNamespace

import pytest
import torch
from mpi4py import MPI

from mpisign.coding.rules import Signum
from mpisign.train import checkpoint, resume, weights
from mpisign.train.recipe import Recipe
from mpisign.train.training import Position
from mpisign.voting.hook import VoteState
from mpisign.workload import models

CLASSES = ["china", "flower"]


def training(method="vote-alltoall", optimizer="sgd"):
    """Return what a checkpoint is made of, and loaded into: as far as these two look at a training."""
    torch.manual_seed(0)
    model = models.build("tiny", 32, classes=2)
    owned, votes = list(model.parameters()), method.startswith("vote")
    made = torch.optim.AdamW(owned) if optimizer == "adamw" else torch.optim.SGD(owned, 0.1, 0.0 if votes else 0.9)
    if not votes:
        for weight in owned:
            weight.grad = torch.ones_like(weight)
        made.step()
    pictures = SimpleNamespace(classes=CLASSES, fingerprint=lambda: (2, 64, "digest"))
    config = Recipe(model="tiny", method=method, optimizer=optimizer, data="photos", lr=1e-3, keep=3)
    vote = None
    if votes:
        vote = VoteState(MPI.COMM_SELF, rule=Signum(0.9))
        momentum = {"steps": 3, "rank": 0, "ranks": 1, "momentum": [torch.ones_like(one) for one in owned]}
        vote.load_state_dict(momentum, owned)
    return SimpleNamespace(comm=MPI.COMM_SELF, model=model, weights=owned, optimizer=made, pictures=pictures,
                           config=config, position=Position(1, 8, 12, 2.5, 4, 8, 5, 0.5), vote=vote)  # fmt: skip


WAYS = {"vote": (), "sgd": ("gloo",), "adamw": ("gloo", "adamw")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a folder for each way, with two checkpoints, of steps 9 and 12."""
    made = {}
    for way, options in WAYS.items():
        made[way], one = tmp_path_factory.mktemp(way), training(*options)
        for step in (9, 12):
            one.position = dataclasses.replace(one.position, step=step)
            assert resume.save(one, made[way]) is None
    return made


@pytest.fixture
def run(runs, tmp_path):
    return shutil.copytree(runs["vote"], tmp_path / "run")


@pytest.mark.parametrize("way", WAYS)
def test_a_whole_checkpoint_is_whole_and_loads(runs, way):
    path, broken = checkpoint.newest(runs[way])
    assert (path.name, broken) == ("checkpoint-00000012", {})
    one = training(*WAYS[way])
    one.position = Position()
    assert resume.load(one, path) == []
    assert one.position == Position(1, 8, 12, 2.5, 4, 8, 5, 0.5)


def flipped(data, bit):
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_every_flipped_bit_and_every_cut_is_noticed(run):
    """All bits of the list of digests, and some of each file; then cuts, and what is put behind the end."""
    draw, path = random.Random(0), run / "checkpoint-00000012"
    for name in (checkpoint.SUMS, "model.pt", "rank-0.pt"):
        whole, tried = (path / name).read_bytes(), 0
        bits = range(8 * len(whole))
        spoilt = [flipped(whole, bit) for bit in (bits if name == checkpoint.SUMS else draw.sample(bits, 300))]
        spoilt += [whole[: draw.randrange(len(whole))] for _ in range(30)] + [b"", whole + b"\n", whole * 2]
        for data in spoilt:
            (path / name).write_bytes(data)
            assert checkpoint.newest(run)[0] == run / "checkpoint-00000009", (name, tried)
            tried += 1
        assert tried > 300
        (path / name).write_bytes(whole)
    assert checkpoint.newest(run) == (path, {})


def swap(path):
    shutil.copy(path / "rank-0.pt", path / "aside")
    shutil.copy(path / "model.pt", path / "rank-0.pt")
    (path / "aside").rename(path / "model.pt")


def link_to_itself(path):
    (path / "model.pt").unlink()
    (path / "model.pt").symlink_to("model.pt")


def folder_for_a_file(path):
    (path / "rank-0.pt").unlink()
    (path / "rank-0.pt").mkdir()


def of_another_step(path):
    for name in ("rank-0.pt", checkpoint.SUMS):
        shutil.copy(path.parent / "checkpoint-00000009" / name, path / name)


def file_for_a_folder(path):
    shutil.rmtree(path)
    path.write_text("checkpoint")


@pytest.mark.parametrize(("spoil", "said"), [
    (swap, "is damaged: model.pt is not what was written"),
    (of_another_step, "is damaged: model.pt is not what was written"),
    (link_to_itself, "cannot be read"),
    (folder_for_a_file, "cannot be read"),
    (file_for_a_folder, "cannot be read"),
    *((lambda path, name=name: (path / name).unlink(), f"lacks {name}")
      for name in ("model.pt", "rank-0.pt", checkpoint.SUMS)),
    (lambda path: shutil.rmtree(path) or path.mkdir(), f"lacks {checkpoint.SUMS}"),
    (lambda path: (path / checkpoint.SUMS).write_bytes(b"\xff\xfe" * 70), "cannot be read"),
])  # fmt: skip
def test_the_newest_whole_one_is_taken_and_the_others_are_named(run, spoil, said):
    path = run / "checkpoint-00000012"
    spoil(path)
    taken, broken = checkpoint.newest(run)
    assert taken.name == "checkpoint-00000009"
    assert broken.keys() == {path}
    assert broken[path].startswith(said)
    checkpoint.set_aside(run, 9)
    assert [one.name for one in checkpoint.saved(run)] == ["checkpoint-00000009"]
    assert (run / "broken-checkpoint-00000012").exists()
    (taken / "model.pt").unlink()
    with pytest.raises(ValueError, match=rf"resume: no checkpoint in {run} is whole: {taken} lacks model.pt"):
        checkpoint.newest(run)


def test_names_that_are_no_checkpoint_are_passed_over(tmp_path):
    for name in ("checkpoint-12", "checkpoint-0000000x", "checkpoint-²²²²²²²²", "checkpoint-" + "9" * 200,
                 "checkpoint-00000012.old", "broken-checkpoint-00000012"):  # fmt: skip
        (tmp_path / name).mkdir()
    assert checkpoint.newest(tmp_path) == (None, {})
    for step in (99_999_999, 100_000_000):
        checkpoint.path_of(tmp_path, step).mkdir()
    assert [path.name for path in checkpoint.saved(tmp_path)] == ["checkpoint-99999999", "checkpoint-100000000"]


def rewritten(path, name, state):
    """Write a file of a checkpoint anew, and its digest with it, as somebody would who makes one up."""
    data = state if isinstance(state, bytes) else checkpoint.packed(state)
    (path / name).write_bytes(data)
    lines = [checkpoint._sum_of(checkpoint._digest(path / name), name)
             for name in ("model.pt", *sorted(file.name for file in path.glob("rank-*.pt")))]  # fmt: skip
    (path / checkpoint.SUMS).write_text("".join(lines))


def put(*keys, value):
    """Return what sets a value deep in a state; without a value of its own what is there is removed."""

    def change(state):
        for key in keys[:-1]:
            state = state[key]
        if value is GONE:
            del state[keys[-1]]
        else:
            state[keys[-1]] = value(state[keys[-1]]) if callable(value) else value

    return change


GONE = object()
HUGE = torch.zeros(1).expand(10**6, 10**6)
NAN = torch.full((2, 128), torch.nan)


MADE_UP = [
    *(("vote", "model.pt", put(key, value=GONE)) for key in (
        "format", "ranks", "step", "config", "position", "classes", "pictures", "model", "optimizer")),
    *(("vote", "model.pt", put(key, value=value)) for key in (
        "format", "ranks", "step", "config", "position", "classes", "pictures", "model", "optimizer")
      for value in (None, "x", -1, 10**30, [], [[]], {}, {"a": 1}, torch.zeros(2), float("nan"), HUGE)
      if (key, value) != ("classes", [])),
    *(("vote", "model.pt", put("config", name, value=value)) for name in ("model", "method", "optimizer")
      for value in (GONE, None, 3, torch.zeros(1), ["a"])),
    *(("vote", "model.pt", put("position", name, value=value))
      for name in ("epoch", "seen", "step", "losses", "steps", "judged", "right", "best")
      for value in (GONE, None, "1", float("inf"), float("nan"), True, torch.ones(1), -2 if name != "losses" else 1)),
    ("vote", "model.pt", put("step", value=9)),
    *(("vote", "model.pt", put("model", "5.weight", value=value)) for value in (
        GONE, None, 1.0, HUGE, NAN, torch.zeros(2, 128, dtype=torch.int64), torch.zeros(2, 128, dtype=torch.complex64),
        torch.zeros(128, 2), torch.zeros(2, 128).to_sparse(), torch.zeros(1).expand(2, 128), [0.0], {})),
    *(("vote", "model.pt", put("optimizer", "param_groups", value=value)) for value in (
        GONE, None, [], [{}], [[]], [{"params": [0]}], [{"params": None}], {})),
    *(("sgd", "model.pt", put("optimizer", "state", value=value)) for value in (
        None, [], {0: None}, {0: {}}, {"0": {}}, {99: {"momentum_buffer": None}}, {-1: {}},
        {0: {"momentum_buffer": 1}})),
    *(("sgd", "model.pt", put("optimizer", "state", 0, "momentum_buffer", value=value)) for value in (
        GONE, None, HUGE, torch.zeros(3), lambda there: there * torch.nan, lambda there: there.long())),
    *(("adamw", "model.pt", put("optimizer", "state", 0, name, value=value)) for name in ("step", "exp_avg")
      for value in (GONE, None, HUGE, torch.zeros(3), 7)),
    *(("vote", "rank-0.pt", put("buffers", value=value)) for value in (GONE, None, {}, [1], [torch.zeros(1)] * 99)),
    *(("vote", "rank-0.pt", put("vote", value=value)) for value in (1, [], {}, {"momentum": []})),
    *(("vote", "rank-0.pt", put("vote", "rank", value=value)) for value in (GONE, 1, -1, None, "0", torch.ones(2))),
    *(("vote", "rank-0.pt", put("vote", "momentum", value=value)) for value in (
        GONE, [], {}, 3, lambda there: there[:-1], lambda there: [*there, None], lambda there: [HUGE, *there[1:]],
        lambda there: [1, *there[1:]], lambda there: [there[0] * torch.nan, *there[1:]],
        lambda there: [there[0].double(), *there[1:]], lambda there: [there[0].flatten(), *there[1:]])),
    *((way, name, data) for way in ("vote",) for name in ("model.pt", "rank-0.pt") for data in (
        b"", b"nonsense", b"PK\x03\x04", b"PK\x05\x06" + bytes(18), b"\x80\x02}q\x00.", b"[" * 10**5)),
]  # fmt: skip


def test_what_is_made_up_with_the_right_digests_is_refused_in_one_line(runs, tmp_path):
    """All in one test: none of them may change the training that is to go on from it, so each finds the same one."""
    trainings = {way: training(*options) for way, options in WAYS.items()}
    before = {way: [part.clone() for part in one.model.state_dict().values()] for way, one in trainings.items()}
    wrong = []
    for number, (way, name, change) in enumerate(MADE_UP):
        folder = shutil.copytree(runs[way], tmp_path / str(number))
        path = folder / "checkpoint-00000012"
        state = change
        if not isinstance(change, bytes):
            state = torch.load(path / name, weights_only=True)
            change(state)
        rewritten(path, name, state)
        assert checkpoint.newest(folder) == (path, {})
        try:
            resume.load(trainings[way], path)
            said = "nothing"
        except Exception as error:  # of any kind: a ValueError is what it ought to be
            said = str(error) if isinstance(error, ValueError) else repr(error)
        if not said.startswith(("resume: ", "momentum: ", "load_state_dict: ")) or len(said.splitlines()) > 1:
            wrong.append(f"{number} {way} {name} {said}")
        shutil.rmtree(folder)
    assert wrong == []
    assert len(MADE_UP) >= 200
    for way, one in trainings.items():
        assert all(map(torch.equal, before[way], one.model.state_dict().values())), way


def test_a_flipped_bit_of_plain_weights_is_noticed_or_changes_nothing(tmp_path):
    """They come from anywhere, without a digest: but each part of a file of torch.save has a checksum."""
    model, draw = models.build("tiny", 32, classes=2), random.Random(1)
    assert weights.keep_best(tmp_path, model) is None
    path, kept = tmp_path / weights.BEST, {name: part.clone() for name, part in model.state_dict().items()}
    whole, noticed = path.read_bytes(), 0
    weights.load(MPI.COMM_SELF, path, model)
    for bit in draw.sample(range(8 * len(whole)), 600):
        path.write_bytes(flipped(whole, bit))
        try:
            weights.load(MPI.COMM_SELF, path, model)
        except ValueError as error:
            noticed += 1
            assert len(str(error).splitlines()) == 1  # noqa: PT017
        assert all(torch.equal(part, kept[name]) for name, part in model.state_dict().items()), bit
    assert noticed > 400
    for cut in draw.sample(range(len(whole)), 50):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"weights: .* cannot be read"):
            weights.load(MPI.COMM_SELF, path, model)
