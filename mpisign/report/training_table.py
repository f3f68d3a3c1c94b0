"""Trainings as text: a row each, what they differ in, what has to be known of them; their curves as CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from . import harmless
from .notes import CROWDED, WARNING, Remark
from .table import Part, grid
from .training_log import Row, Start, Training

FORMATS = ("table", "markdown", "csv", "json")
ASKED = ("method", "optimizer", "epochs", "adversaries", "adversary")  # these have a column
UNTOLD = ("workers", "keep", "checkpoint_every", "share_gpus")  # these have no part in the result
MACHINE = ("device", "nodes", "mpisign", "commit")


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def _digits(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}g}"


def _best(row: Row) -> str:
    return "" if row["best_top1"] is None else f"{_percent(row['best_top1'])} ({row['best_epoch']})"


def _traitors(row: Row) -> str:
    return f"{row['adversaries']} ({row['adversary']})" if row["adversaries"] else ""


COLUMNS: dict[str, Callable[[Row], str]] = {  # one that is empty in all rows is left out
    "run": lambda row: row["run"],
    "method": lambda row: row["method"],
    "optimizer": lambda row: "" if row["kind"] == "vote" else row["optimizer"],
    "ranks": lambda row: ", then ".join(map(str, row["ranks"])),
    "traitors": _traitors,
    "epochs": lambda row: f"{row['epochs']} of {row['epochs_asked']}",
    "best top-1 % (epoch)": _best,
    "last top-1 %": lambda row: _percent(row["top1"]),
    "top-1 % in training": lambda row: _percent(row["train_top1"]),
    "validation loss": lambda row: _digits(row["validation_loss"]),
    "training loss": lambda row: _digits(row["loss"]),
    "hours": lambda row: _digits(row["hours"], 3),
    "images/s": lambda row: _digits(row["images_per_s"]),
}


def summary(training: Training) -> Row:
    """Return the row of a training: what was asked, its best epoch and its last one; None is what is not known."""
    config, epochs = training.config, training.epochs
    last: Row = epochs[-1] if epochs else {}
    known = [row for row in epochs if row["top1"] is not None]
    best: Row = max(known, key=lambda row: float(row["top1"]), default={})
    speeds = [row["images_per_s"] for row in epochs if row["images_per_s"] is not None]
    steps = training.steps[-1]["step"] if training.steps else 0
    return {
        "run": training.name, "method": training.method, "kind": training.kind, "optimizer": config.get("optimizer"),
        "ranks": training.ranks, "adversaries": config.get("adversaries", 0), "adversary": config.get("adversary"),
        "epochs": last.get("epoch", 0), "epochs_asked": config.get("epochs"), "steps": steps,
        "best_top1": best.get("top1"), "best_epoch": best.get("epoch"),
        **{name: last.get(name) for name in ("top1", "top5", "train_top1", "validation_loss", "loss")},
        "hours": max((rows[-1]["hours"] for rows in (epochs, training.steps) if rows), default=0.0),
        "images_per_s": median(speeds) if speeds else None, "apart": training.votes.get("apart") or [],
    }  # fmt: skip


def render(trainings: Sequence[Training], form: str, *, per_iteration: bool = False) -> str:
    """Return trainings in one of FORMATS: csv and json have the curves, epoch by epoch or step by step."""
    if form == "json":
        return json.dumps([_whole(training, per_iteration=per_iteration) for training in trainings], indent=1)
    if form == "csv":
        return _csv(trainings, per_iteration=per_iteration)
    style = "pipe" if form == "markdown" else "simple"
    main, *others = parts(trainings, per_iteration=per_iteration)
    blocks = [title(trainings), grid(main.cells, main.headers, style=style)]
    blocks += [f"{part.caption}\n\n{grid(part.cells, part.headers, style=style)}" for part in others]
    said = [(WARNING if remark.warning else "") + remark.text for remark in remarks(trainings)]
    blocks.append("\n".join(f"- {harmless.markdown(line)}" if form == "markdown" else line for line in said))
    return "\n\n".join(filter(None, blocks))


def _curve(training: Training, *, per_iteration: bool) -> list[Row]:
    return training.steps if per_iteration else training.epochs


def _csv(trainings: Sequence[Training], *, per_iteration: bool) -> str:
    printed = io.StringIO()
    writer = csv.writer(printed, lineterminator="\n")
    rows = [(training, row) for training in trainings for row in _curve(training, per_iteration=per_iteration)]
    writer.writerow(["run", "method", *(rows[0][1] if rows else ())])
    writer.writerows(harmless.cells([training.name, training.method, *row.values()]) for training, row in rows)
    return printed.getvalue().rstrip("\n")


def _whole(training: Training, *, per_iteration: bool) -> Row:
    curves = {"by_epoch": training.epochs} | ({"by_step": training.steps} if per_iteration else {})
    finite = {name: [{key: _finite(value) for key, value in row.items()} for row in rows]
              for name, rows in curves.items()}  # fmt: skip
    return {name: _finite(value) for name, value in summary(training).items()} | finite


def _finite(value: Any) -> Any:
    """Return None for what JSON has no number for."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def parts(trainings: Sequence[Training], *, per_iteration: bool = False) -> list[Part]:
    """Return the main table and, if asked for, that of each step."""
    rows = [summary(training) for training in trainings]
    cells = {header: [cell(row) or "" for row in rows] for header, cell in COLUMNS.items()}
    shown = {header: column for header, column in cells.items() if any(column)}
    whole = [Part("Each training:", list(shown), [list(row) for row in zip(*shown.values(), strict=True)])]
    if per_iteration:
        steps = [
            [training.name, f"{row['step']}", _digits(row["epoch"]), _digits(row["hours"]), _digits(row["loss"]),
             _digits(row["lr"])]
            for training in trainings for row in training.steps
        ]  # fmt: skip
        whole.append(Part("Each step:", ["run", "step", "epochs done", "hours", "training loss", "rate"], steps))
    return whole


def title(trainings: Sequence[Training]) -> str:
    """Return the line above a table or a chart: what was trained, as far as it is the same in all."""
    said = {
        "{model}": ("model",), "{data}": ("data",), "{image_size} x {image_size}": ("image_size",),
        "batch {batch_size} a rank": ("batch_size",),
    }  # fmt: skip
    common = _common(trainings)
    told = [text.format(**common) for text, names in said.items() if all(name in common for name in names)]
    return ", ".join(told) or "trainings"


def _common(trainings: Sequence[Training]) -> dict[str, Any]:
    first = trainings[0].config
    return {name: value for name, value in first.items()
            if all(training.config.get(name) == value for training in trainings)}  # fmt: skip


def remarks(trainings: Sequence[Training]) -> list[Remark]:
    """Return what has to be known: warnings and notes on trainings, and what was asked of them otherwise."""
    said: dict[Remark, list[str]] = {}
    for training in trainings:
        for remark in _of_one(training):
            said.setdefault(remark, []).append(training.name)
    return [
        *(Remark(f"{', '.join(names)}: {remark.text}", remark.warning) for remark, names in said.items()),
        *_differences(trainings),
    ]


def _of_one(training: Training) -> list[Remark]:
    said = [(fault, True) for fault in training.faults]
    if crowded(training):
        said.append((CROWDED, True))
    apart, absurd = training.votes.get("apart"), training.votes.get("nonfinite")
    if apart:
        said.append((f"rank {', '.join(map(str, apart))} agrees with the votes far less than the others", True))
    if absurd:
        said.append((f"values of gradients that were not finite, in the last step: {absurd}", True))
    skipped = training.epochs[-1]["skipped"] if training.epochs else None
    if skipped:
        said.append((f"pictures that were left out: {skipped}", True))
    said += [(f"from step {start.step + 1} on {changes}", False) for start in training.starts
             if (changes := _changes(start))]  # fmt: skip
    if not training.epochs:
        last = training.steps[-1] if training.steps else {"step": 0, "loss": None}
        loss = "" if last["loss"] is None else f", the last with loss {_digits(last['loss'])}"
        said.append((f"no epoch is finished; steps: {last['step']}{loss}", False))
    return [Remark(*each) for each in said]


def crowded(training: Training) -> bool:
    """Tell whether more ranks than cores were at work, so that hours say little."""
    ranks_per_core = training.machine.get("ranks_per_core")
    return isinstance(ranks_per_core, (int, float)) and ranks_per_core > 1


def _changes(start: Start) -> str:
    """Say what was otherwise before a start, of what has a part in the result."""
    told = {name: pair for name, pair in start.changed.items() if name not in UNTOLD}
    return ", ".join(f"{name} is {now}, was {before}" for name, (before, now) in told.items())


def _differences(trainings: Sequence[Training]) -> list[Remark]:
    """Say what was asked otherwise of one than another, and where the machines differ that their hours are of."""
    configs = {name: [training.config.get(name) for training in trainings]
               for training in trainings for name in training.config if name not in ASKED + UNTOLD}  # fmt: skip
    machines = {name: [training.machine.get(name) for training in trainings] for name in MACHINE}
    found = []
    for fact, values in (configs | machines).items():
        names: dict[str, list[str]] = {}
        for training, value in zip(trainings, values, strict=True):
            names.setdefault("none" if value is None else str(value), []).append(training.name)
        if len(names) > 1:
            told = ", ".join(f"{value} ({', '.join(those)})" for value, those in names.items())
            found.append(Remark(f"{fact}: {told}", warning=False))
    return found
