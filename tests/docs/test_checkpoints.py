"""docs/checkpoints.md: what a real training leaves is what the page says, and its script loads it without mpisign."""

import json
import re
import subprocess
import sys

import pytest
import torch
from jobs import Job, start
from launch import ROOT, environment

from mpisign.report import training_log
from mpisign.workload import models
from mpisign.workload.data import Pictures, evaluation

PAGE = (ROOT / "docs" / "checkpoints.md").read_text()
RANKS, SIZE, MODEL = 2, 32, "shufflenet_v2_x0_5"
# How each row of the page's table of sizes is trained.
WAYS = {
    "a vote with momentum": (),
    "a vote with `--momentum 0`": ("--momentum", "0"),
    "dense SGD with momentum": ("--method", "gloo", "--lr", "0.01"),
    "AdamW": ("--method", "gloo", "--optimizer", "adamw"),
}
NAMES, SETTINGS = 1000, 10_000  # bytes at most: of each tensor, and of all that is none


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of a run of each way."""
    top = tmp_path_factory.mktemp("checkpoints")
    command = [sys.executable, "-m", "mpisign", "photos", "photos", "--validate", "0.2"]
    subprocess.run(command, cwd=top, env=environment(), check=True, capture_output=True)
    jobs = []
    for number, options in enumerate(WAYS.values()):
        (top / str(number)).mkdir()
        asked = ("--data", str(top / "photos"), "--model", MODEL, "--image-size", str(SIZE), "--batch-size", "8",
                 "--workers", "0", "--epochs", "1", "--output", "run")  # fmt: skip
        jobs.append(Job((*asked, *options), top / str(number)))
    for ended in start(RANKS, "mpisign.train.__main__", jobs):
        assert ended.returncode == 0, ended.stderr
    return {way: top / str(number) / "run" for number, way in enumerate(WAYS)}


def checkpoint_of(run):
    (folder,) = run.glob("checkpoint-*")
    return folder


def loaded(run, name):
    return torch.load(checkpoint_of(run) / name, weights_only=True)


def table_under(heading):
    """The rows of the page's first table below a heading, or below a text."""
    rows = re.search(r"\n\n((?:\|.*\n)+)", PAGE[PAGE.index(heading) :])[1].splitlines()
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def test_the_page_names_every_key(runs):
    for name, text in (("model.pt", "`model.pt` is a dict"), ("rank-1.pt", "`rank-<r>.pt` is a dict too")):
        told = {key for row in table_under(text) for key in re.findall(r"`(\w+)`", row[0])}
        assert told == set().union(*(loaded(run, name) for run in runs.values()))
    files = {path.name for path in runs["AdamW"].iterdir()}
    assert files == {"best.pt", "log.jsonl", checkpoint_of(runs["AdamW"]).name}
    momentum = loaded(runs["a vote with momentum"], "rank-1.pt")["vote"]["momentum"]
    model = models.build(MODEL, SIZE, classes=2)
    assert [one.shape for one in momentum] == [parameter.shape for parameter in model.parameters()]
    assert loaded(runs["a vote with momentum"], "model.pt")["optimizer"]["state"] == {}


@pytest.mark.parametrize("way", WAYS)
def test_files_are_as_large_as_the_page_says(runs, way):
    (formulas,) = (row[1:] for row in table_under("## How large they are") if row[0] == way)
    model = models.build(MODEL, SIZE, classes=2)
    known = {"d": sum(parameter.numel() for parameter in model.parameters()),
             "b": sum(buffer.numel() for buffer in model.buffers()), "P": RANKS}  # fmt: skip
    columns = ["model.pt"], ["rank-1.pt"], ["model.pt", "rank-0.pt", "rank-1.pt"]
    for formula, files in zip(formulas, columns, strict=True):
        expected = eval(re.sub(r"(?<=[\w)]) (?=[a-zA-Z(])", " * ", formula), known.copy())  # noqa: S307
        size = sum((checkpoint_of(runs[way]) / name).stat().st_size for name in files)
        tensors = sum(tensors_in(loaded(runs[way], name)) for name in files)
        assert expected <= size <= expected + NAMES * tensors + SETTINGS * len(files)


def tensors_in(part):
    if isinstance(part, torch.Tensor):
        return 1
    parts = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    return sum(map(tensors_in, parts))


def test_its_script_loads_the_model_without_mpisign(runs, tmp_path):
    (script,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    file = tmp_path / "load.py"
    file.write_text(f"import sys\nsys.modules['mpisign'] = None\n{script}")
    for run in runs.values():
        done = subprocess.run([sys.executable, str(file), str(run)], env=environment(), capture_output=True, text=True,
                              check=False)  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert re.fullmatch(rf"{checkpoint_of(run).name}: a grey picture is most like (china|flower)\n", done.stdout)


def test_the_model_is_as_good_as_the_log_says(runs):
    run = runs["dense SGD with momentum"]
    saved = loaded(run, "model.pt")
    model = models.build(MODEL, SIZE, classes=2)
    model.load_state_dict(saved["model"])
    model.eval()
    pictures = Pictures(run.parent.parent / "photos" / "val", evaluation(SIZE), seed=0, image_size=SIZE)
    with torch.inference_mode():
        right = []
        for number in range(len(pictures)):
            picture, label, _ = pictures[0, number]
            right.append(int(model(picture[None]).argmax()) == label)
    told = [line for line in map(json.loads, (run / "log.jsonl").read_text().splitlines()) if line["type"] == "epoch"]
    assert sum(right) / len(right) == told[-1]["top1"]
    (epoch,) = training_log.read(run / "log.jsonl", "run").epochs
    assert (epoch["epoch"], epoch["top1"], epoch["step"]) == (1, told[-1]["top1"], saved["step"])
    assert 0 < epoch["hours"] * 3600 < 600
