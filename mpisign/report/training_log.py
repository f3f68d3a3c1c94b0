"""The log of a training, as rows of numbers: what mpisign.train keeps in `log.jsonl`, a JSON object a line.

The first line has type "train" and tells what was asked and what the machine was. A line of type "start" tells what is
otherwise from there on. Lines of type "iteration" are steps, those of type "epoch" finished epochs. Other lines are
passed over, and a field that is not there is not known; one that is of another type is refused (`log_schema`).

Hours are hours at work, which the lines add up to: neither the pause between two starts nor what a start takes counts,
nor do checkpoints.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from . import log_schema
from .harmless import all_printable

Row = dict[str, Any]  # None stands for what a log does not tell

HEAD = 1 << 20  # bytes: no first line of a training is longer
PARTS = ("data", "forward", "backward", "agree", "check", "step")  # of a step, end to end; those of a vote lie within
# What a log says of an epoch, and of a step.
OF_EPOCH = ("loss", "validation_loss", "top1", "top5", "train_top1", "images_per_s", "skipped")
OF_STEP = ("loss", "lr")


class Start(NamedTuple):
    """What was asked and what the machine was at a start, and what of it was otherwise before, as [before, now]."""

    config: dict[str, Any]
    machine: dict[str, Any]
    step: int = 0  # how many steps were done
    changed: dict[str, Any] = {}  # noqa: RUF012 (nobody changes it)


@dataclass
class Training:
    """One training: its starts, a row for each finished epoch, and one for each step.

    Both kinds of rows have `epoch` (1 is the end of the first one, a step's is a fraction), `step` and `hours`.
    `votes` is what the last step tells of its vote; it is empty if none was held. `faults` says what is wrong with the
    file.
    """

    name: str
    starts: list[Start]
    kind: str = "rival"  # of the method, or "vote"
    pictures: float | None = None  # to train on
    epochs: list[Row] = field(default_factory=list)
    steps: list[Row] = field(default_factory=list)
    votes: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def config(self) -> dict[str, Any]:
        """What was asked at the last start."""
        return self.starts[-1].config

    @property
    def machine(self) -> dict[str, Any]:
        """What the machine was at the last start."""
        return self.starts[-1].machine

    @property
    def method(self) -> str:
        """How gradients are exchanged."""
        return str(self.config.get("method", ""))

    @property
    def ranks(self) -> list[int]:
        """How many ranks there were, from one start to the next where their number changes."""
        counts = [start.machine.get("ranks") for start in self.starts]
        return [count for at, count in enumerate(counts) if count is not None and counts[at - 1 : at] != [count]]


def are(paths: Sequence[Path]) -> bool:
    """Tell whether these files are logs of trainings, by their first lines; if none of them is, they may be records.

    Raises:
        ValueError: some are, some are not; or a file is empty.
        OSError: a file can't be read.

    """
    logs = [path for path in paths if _is_log(path)]
    others = [path for path in paths if path not in logs]
    if logs and others:
        raise ValueError(f"{logs[0]} is the log of a training, {others[0]} is none: report records and logs apart")
    return bool(logs)


def _is_log(path: Path) -> bool:
    if path.exists() and not path.is_file():  # a pipe can be read but once, by the reader of records
        return False
    with path.open("rb") as file:
        first = file.readline(HEAD)
    if not first:
        raise ValueError(f"{path} is empty")
    head = _parsed(first)
    return head is not None and head.get("type") == "train"


def names(paths: Sequence[Path]) -> list[str]:
    """Name trainings by their folders: by the last that differs, with as many above it as tell them apart.

    Raises:
        ValueError: a log is given twice.

    """
    absolute = [Path(os.path.abspath(path)) for path in paths]
    parts = [path.parent.parts if path.name == "log.jsonl" else path.with_suffix("").parts for path in absolute]
    for at, part in enumerate(parts):
        if part in parts[:at]:
            raise ValueError(f"{paths[at]} is given twice")
    while len(parts) > 1 and len({part[-1] for part in parts}) == 1:
        parts = [part[:-1] for part in parts]  # what all end in tells nothing
    return next(tails for depth in range(1, max(map(len, parts)) + 1)
                if len(set(tails := ["/".join(part[-depth:]) for part in parts])) == len(parts))  # fmt: skip


def read(path: Path, name: str) -> Training:
    """Read a log, also one that is still being written, or whose job was killed, and check it (`log_schema`).

    Raises:
        ValueError: it is no log of a training, or a line is at fault; the text names the line and the field.
        OSError: it cannot be read.

    """
    if not _is_log(path):
        raise ValueError(f"{path}: no log of mpisign.train")
    with path.open("rb") as file:
        faults: list[str] = []
        return _read(path, name, _lines(file, faults), faults)


def _read(path: Path, name: str, lines: Iterator[tuple[int, Row]], faults: list[str]) -> Training:
    """Add up numbered lines, of which the first is the head; `faults` is filled as they are read."""
    training: Training | None = None
    seconds = began = 0.0  # at work; and when what is at work on this epoch began with it
    steps, from_zero = 0, False
    for number, line in lines:
        try:
            steps = log_schema.check(line, steps)
            if training is None:
                from_zero = line.get("format") == 1  # its epochs are counted from 0
                training = Training(name, [Start(line["config"], _part(line, "machine"))], faults=faults,
                                    kind=line.get("kind") or "",
                                    pictures=_part(line, "pictures").get("train_pictures"))  # fmt: skip
                continue
            kind = line.get("type")
            if kind == "train":
                raise ValueError("a second line of type train; a file has one log")
            if kind == "start":
                training.starts.append(_started(training.starts[-1], line))
                began = seconds
            elif kind == "iteration":
                seconds += sum(_part(line, "seconds").get(part, 0.0) for part in PARTS)
                training.steps.append(_row(line, OF_STEP, seconds))
                training.votes = _part(line, "votes") or training.votes
            elif kind == "epoch":
                seconds = began = max(seconds, began + (line.get("seconds") or 0.0))
                rate, epoch = training.steps[-1]["lr"] if training.steps else None, line.get("epoch")
                epoch = len(training.epochs) + 1 if epoch is None else epoch + from_zero
                training.epochs.append(_row(line, OF_EPOCH, seconds) | {"epoch": epoch, "lr": rate})
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    if training is None:
        raise ValueError(f"{path}: no log of mpisign.train")
    training.kind = training.kind or ("vote" if training.votes else "rival")  # format 1 does not tell it
    _count_epochs(training)
    return training


def _started(before: Start, line: Row) -> Start:
    """Return what was asked and what the machine was, from a line on that names what changed."""
    changed = _part(line, "changed")
    config, machine = (part | {name: now for name, (_, now) in changed.items() if name in part}
                       for part in (before.config, before.machine))  # fmt: skip
    log_schema.check_facts(config, machine)
    return Start(config, machine, line.get("steps") or 0, changed)


def _lines(file: Iterable[bytes], faults: list[str]) -> Iterator[tuple[int, Row]]:
    """Yield the lines that are whole, with their numbers from 1 on, and say of those that are not."""
    broken, last = 0, False
    for number, text in enumerate(file, 1):
        line = _parsed(text)
        broken, last = broken + (line is None), line is None
        if line is not None:
            yield number, all_printable(line)
    if last:
        faults.append("the last line is half-written, as a job leaves it that is killed or still at work")
    if broken > last:
        faults.append(f"lines that can't be read: {broken - last}")


def _parsed(text: bytes) -> Row | None:
    """Return a line of a log, or None if it is none."""
    try:
        line = msgspec.json.decode(text)  # is quick, but knows no NaN, which the loss of a validation may be
    except (ValueError, RecursionError):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            return None
    return line if isinstance(line, dict) else None


def _row(line: Row, names: Sequence[str], seconds: float) -> Row:
    told = {name: line.get(name) for name in names}
    return {"epoch": None, "step": line["step"], "hours": seconds / 3600, **told}


def _part(line: Row, name: str) -> Row:
    """Return what a line has under a name, or nothing."""
    return line.get(name) or {}


def _count_epochs(training: Training) -> None:
    """Say of each step how many epochs were done behind it; None where nothing tells how long an epoch is."""
    steps = np.array([row["step"] for row in training.steps], float)
    ends = np.array([0, *(row["step"] for row in training.epochs)], float)
    numbers = np.array([0, *(row["epoch"] for row in training.epochs)], float)
    length = _steps_of_epoch(training)
    if len(ends) > 1:
        length = length or max(ends[-1] - ends[-2], 1.0)
    if length is None:
        return
    done = np.interp(steps, ends, numbers) + np.clip((steps - ends[-1]) / length, 0, 1)
    for row, epoch in zip(training.steps, done, strict=True):
        row["epoch"] = float(epoch)


def _steps_of_epoch(training: Training) -> float | None:
    """Return how many steps an epoch has, by what was asked at the last start, or None."""
    batch, ranks = training.config.get("batch_size"), training.machine.get("ranks")
    return training.pictures // ranks // batch or None if training.pictures and ranks and batch else None
