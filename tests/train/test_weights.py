"""Plain weights: a training leaves its best, begins with some, evaluates some; and training without val/."""

import re
import shutil

import pytest
import torch
from jobs import Job, start
from launch import our_lines
from test_train import asked, folders, lines
from torch import nn

from mpisign.train.weights import misfit, weights_of
from mpisign.workload import models

RESULT = re.compile(r"validation loss ([\d.]+), top-1 ([\d.]+)%, 16 pictures")


# TensorBoard as it need not be installed here: what is written goes to a file of text.
BOARDS = {
    "board": """
import importlib.util, sys, types
from pathlib import Path
class SummaryWriter:
    def __init__(self, folder, purge_step):
        self.file = Path(folder, "events").open("w")
        print("begin", purge_step, file=self.file)
    def add_scalar(self, name, value, step):
        print(name, value, step, file=self.file)
    def close(self):
        self.file.close()
sys.modules["tensorboard"] = types.ModuleType("tensorboard")
sys.modules["tensorboard"].__spec__ = importlib.util.spec_from_loader("tensorboard", None)
board = types.ModuleType("torch.utils.tensorboard")
board.SummaryWriter = SummaryWriter
sys.modules["torch.utils.tensorboard"] = board
""",
    "no board": """
import sys
sys.modules.pop("tensorboard", None)
sys.modules.pop("torch.utils.tensorboard", None)
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "tensorboard" else found(name, *more)
""",
}


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    """Return the folder of a training of two epochs, and the pictures without val/."""
    top = tmp_path_factory.mktemp("trained")
    shutil.copytree(photos / "train", top / "no-val" / "train")
    (ended,) = start(2, "mpisign.train.__main__", [Job(asked(photos, "--epochs", "2", "--lr", "1e-2"), top)])
    assert ended.returncode == 0, ended.stderr
    return top


@pytest.fixture(scope="module")
def later(photos, trained):
    """Return the folders and ends of what uses its weights."""
    best, ways = trained / "run" / "best.pt", {}
    newest = sorted((trained / "run").glob("checkpoint-*"))[-1] / "model.pt"
    other = trained / "other.pt"
    torch.save(models.build("tiny", 32, classes=3).state_dict(), other)
    text = trained / "text.pt"
    text.write_text("weights")
    only = ("--data", str(photos), "--model", "tiny", "--image-size", "32", "--workers", "0", "--batch-size", "4",
            "--evaluate")  # fmt: skip
    plain = asked(photos, "--epochs", "1", "--lr", "1e-9", "--warmup-epochs", "0")
    ways["best"] = (*only, "--weights", str(best))
    ways["model.pt"] = (*only, "--weights", str(newest))
    ways["resume"] = (*only, "--output", str(trained / "run"), "--resume")
    ways["begin"] = (*plain, "--weights", str(best))
    ways["no val"] = (*plain, "--data", str(trained / "no-val"))
    ways["board"] = (*plain, "--tensorboard")
    ways["no board"] = (*plain, "--tensorboard")
    ways["other"] = (*plain, "--weights", str(other))
    ways["text"] = (*only, "--weights", str(text))
    ways["nowhere"] = (*plain, "--weights", "nowhere.pt")
    ways["what"] = only
    ways["empty"] = (*only, "--output", "run", "--resume")
    ways["nothing to judge"] = (*only, "--data", str(trained / "no-val"), "--weights", str(best))
    places = folders(trained, *(f"later/{way}" for way in ways))
    jobs = [Job(ways[way], place, BOARDS.get(way, "")) for way, place in zip(ways, places, strict=True)]
    ended = start(2, "mpisign.train.__main__", jobs)
    return dict(zip(ways, zip(places, ended, strict=True), strict=True))


def result(ended):
    assert ended.returncode == 0, ended.stderr
    (found,) = RESULT.findall(ended.stdout)
    return tuple(map(float, found))


def told(line):
    return round(line["validation_loss"], 4), pytest.approx(100 * line["top1"])


def test_the_best_weights_are_kept_and_can_be_evaluated(trained, later):
    epochs = lines(trained, "epoch")
    best = max(epochs, key=lambda line: line["top1"])  # the first of those that are as good
    assert result(later["best"][1]) == told(best)
    assert result(later["model.pt"][1]) == result(later["resume"][1]) == told(epochs[-1])
    for way in ("best", "model.pt", "resume"):
        assert later[way][1].files == []  # evaluating leaves nothing
    model = models.build("tiny", 32, classes=2)
    model.load_state_dict(torch.load(trained / "run" / "best.pt", weights_only=True))


def test_a_training_begins_with_weights(trained, later):
    place, ended = later["begin"]
    assert ended.returncode == 0, ended.stderr
    kept = torch.load(trained / "run" / "best.pt", weights_only=True)
    (after,) = (place / "run").glob("checkpoint-*")
    now = torch.load(after / "model.pt", weights_only=True)["model"]
    for name, _ in models.build("tiny", 32, classes=2).named_parameters():
        assert torch.allclose(now[name], kept[name], atol=1e-6)  # 8 steps of 1e-9
    (head,) = lines(place, "train")
    assert head["config"]["weights"] == "best.pt"
    assert "evaluate" not in head["config"]


def test_a_training_without_pictures_to_judge(later):
    place, ended = later["no val"]
    assert ended.returncode == 0, ended.stderr
    (epoch,) = lines(place, "epoch")
    assert {"top1", "validation_loss", "validated"}.isdisjoint(epoch)
    assert epoch["train_top1"] > 0
    assert "validation" not in ended.stdout
    assert not (place / "run" / "best.pt").exists()
    assert "val_pictures" not in lines(place, "train")[0]["pictures"]


def test_tensorboard_gets_the_numbers_of_the_log(later):
    place, ended = later["board"]
    assert ended.returncode == 0, ended.stderr
    begin, *events = (place / "run" / "events").read_text().splitlines()
    assert begin == "begin 1"
    told = {(name, int(step)): float(value) for name, value, step in map(str.split, events)}
    for kind in ("iteration", "epoch"):
        for line in lines(place, kind):
            assert told[f"{kind}/loss", line["step"]] == line["loss"]
    assert told["epoch/top1", 8] == lines(place, "epoch")[0]["top1"]


@pytest.mark.parametrize(("way", "said"), [
    ("other", "other.pt holds another model: 5.weight is of shape [3, 128], here of shape [2, 128]"),
    ("no board", "tensorboard: it is not installed: pip install tensorboard"),
    ("text", "text.pt cannot be read"),
    ("nowhere", "weights: nowhere.pt is no file"),
    ("what", "evaluate: tell what"),
    ("empty", "evaluate: tell what"),
    ("nothing to judge", "evaluate: there is no "),
])  # fmt: skip
def test_what_cannot_be_read_or_evaluated_is_told_in_one_line(later, way, said):
    ended = later[way][1]
    assert ended.returncode == 2
    (line,) = our_lines(ended.stderr)
    assert said in line
    assert "Traceback" not in ended.stderr
    assert ended.files == []


def test_weights_of_another_model_are_told_apart():
    ours = nn.Linear(2, 3).state_dict()
    assert misfit(ours, ours) is None
    assert misfit({}, ours) == "holds another model: weight is missing, here of shape [3, 2]"
    assert misfit(ours | {"weight": 1}, ours) == "holds another model: weight is missing, here of shape [3, 2]"
    assert misfit(ours | {"more": ours["bias"]}, ours) == "holds another model: it has more, which is unknown here"
    assert weights_of({"model": ours, "step": 3}) is ours
    assert weights_of(ours) is ours
