"""What the lines of a training's log may hold. A field that is missing, or null, is not known; others are let through.

A loss may be no finite number: that is what has to be told of it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from . import schema
from .schema import Amount, Natural, Positive, Seconds

Line = dict[str, Any]
Share = Annotated[float, Meta(ge=0, le=1)]


class Asked(Struct):
    """What was asked."""

    method: str | None = None
    optimizer: str | None = None
    epochs: Natural | None = None
    batch_size: Positive | None = None
    adversaries: Natural | None = None
    adversary: str | None = None


class Machine(Struct):
    """What the ranks ran on."""

    ranks: Positive | None = None
    ranks_per_core: Amount | None = None


class Pictures(Struct):
    """What was trained on."""

    train_pictures: Positive | None = None


class Train(Struct):
    """The first line."""

    config: Asked
    machine: Machine | None = None
    pictures: Pictures | None = None
    kind: Literal["vote", "rival", "ceiling"] | None = None
    format: int | None = None


class Start(Struct):
    """What is otherwise from here on, as [before, now]."""

    steps: Natural | None = None
    changed: dict[str, tuple[Any, Any]] | None = None


class Votes(Struct):
    """What is told of the vote of a step."""

    apart: list[Natural] | None = None
    nonfinite: Natural | None = None


class Iteration(Struct):
    """A step."""

    step: Positive
    loss: float | None = None
    lr: Amount | None = None
    seconds: dict[str, Seconds] | None = None
    votes: Votes | None = None


class Epoch(Struct):
    """A finished epoch."""

    step: Natural
    epoch: Natural | None = None
    loss: float | None = None
    validation_loss: float | None = None
    top1: Share | None = None
    top5: Share | None = None
    train_top1: Share | None = None
    images_per_s: Amount | None = None
    skipped: Natural | None = None
    seconds: Seconds | None = None


LINES: dict[str, type[Struct]] = {"train": Train, "start": Start, "iteration": Iteration, "epoch": Epoch}


def check(line: Line, steps: int) -> int:
    """Return how many steps are done by the end of a line, before which there were so many.

    Raises:
        ValueError: a field is not what it should be, or a step comes twice; the text names the field.

    """
    kind = line.get("type")
    fields = LINES.get(kind) if isinstance(kind, str) else None
    if fields is None:
        return steps
    schema.check(line, fields)
    if (kind == "iteration" and line["step"] <= steps) or (kind == "epoch" and line["step"] < steps):
        raise ValueError(f"step: {line['step']} comes after step {steps}")
    return int(line.get("step", steps))


def check_facts(config: Line, machine: Line) -> None:
    """Raise a ValueError if what was asked and what the machine was will not do, as they are after a change."""
    schema.check(config, Asked)
    schema.check(machine, Machine)
