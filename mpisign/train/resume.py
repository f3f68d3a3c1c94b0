"""What a checkpoint of a training holds, and how a training goes on from one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..methods.table import METHODS
from . import checkpoint, damage
from .training import Position, Training
from .weights import misfit

if TYPE_CHECKING:
    from torch import Tensor

    from .recipe import Recipe

_MAY_CHANGE = ("resume", "evaluate", "weights", "output", "data", "workers", "keep", "checkpoint_every",
               "tensorboard")  # fmt: skip


def save(training: Training, folder: Path) -> str | None:
    """Write a checkpoint; return None, or on all ranks why it failed. Collective."""
    common = {
        "config": asdict(training.config), "position": asdict(training.position),
        "classes": training.pictures.classes, "pictures": training.pictures.fingerprint(),
        "model": training.model.state_dict(), "optimizer": training.optimizer.state_dict(),
    }  # fmt: skip
    own: dict[str, Any] = {"buffers": [buffer.cpu() for buffer in training.model.buffers()]}
    if training.vote is not None:
        own["vote"] = training.vote.state_dict(training.weights)
    step, keep = training.position.step, training.config.keep
    return checkpoint.write(training.comm, folder, step=step, common=common, own=own, keep=keep)


def load(training: Training, path: Path) -> list[str]:
    """Go on from a checkpoint; return what a user has to know of it. Collective.

    Raises:
        ValueError: on all ranks: it is none, or one of another model; nothing was changed.

    """
    common, own = checkpoint.read(training.comm, path)
    model, optimizer, config = training.model, training.optimizer, training.config
    fault = (
        damage.of_common(common, Position())
        or _misfit(common, config, classes=training.pictures.classes, weights=model.state_dict())
        or damage.of_optimizer(common["optimizer"], optimizer, damage.STATE[config.optimizer])
        or damage.of_own(own, list(model.buffers()))
    )
    if fault:
        raise ValueError(f"resume: {path} {fault}")
    model.load_state_dict(common["model"])
    asked_for = [{key: value for key, value in group.items() if key != "params"}
                 for group in optimizer.param_groups]  # fmt: skip
    optimizer.load_state_dict(common["optimizer"])
    for group, options in zip(optimizer.param_groups, asked_for, strict=True):
        group.update(options)  # weight decay and momentum are this run's
    training.position = Position(**common["position"])
    if own is not None:
        for buffer, kept in zip(model.buffers(), own["buffers"], strict=True):
            buffer.copy_(kept)
    if training.vote is not None:
        if own is not None and "vote" in own:
            training.vote.load_state_dict(own["vote"], training.weights)
        training.vote.steps = training.position.step
    return _notes(training, common)


def _notes(training: Training, common: dict[str, Any]) -> list[str]:
    """Say what is lost, and what is asked for otherwise than before."""
    notes, before, now = [], common["ranks"], training.comm.size
    if training.vote is not None and now < before:
        notes.append(f"it was left by {before} ranks: the momentum of {_ranks(now, before)} is lost")
    elif training.vote is not None and now > before:
        begin = "begins" if now == before + 1 else "begin"
        notes.append(f"it was left by {before} ranks: {_ranks(before, now)} {begin} without momentum")
    if tuple(common["pictures"]) != training.pictures.fingerprint():
        notes.append("it was trained on other pictures, or under other names")
    then, asked = common["config"], asdict(training.config)
    changed = [name for name in asked if name not in _MAY_CHANGE and then.get(name) != asked[name]]
    return notes + [f"{name} was {then.get(name)}, is now {asked[name]}" for name in changed]


def _ranks(first: int, end: int) -> str:
    return f"rank {first}" if end == first + 1 else f"ranks {first} to {end - 1}"


def _misfit(common: dict[str, Any], config: Recipe, *, classes: list[str], weights: dict[str, Tensor]) -> str | None:
    """Say why a checkpoint can't be of this training, or None."""
    kept, then = common["model"], common["config"]
    if then["model"] != config.model:
        return f"holds {then['model']}, not {config.model}"
    known = METHODS.get(then["method"])
    if known is None or (known.kind == "vote") != config.votes:
        votes = "momentum of votes" if known is not None and known.kind == "vote" else "no momentum of votes"
        return f"holds {votes} (--method {then['method']}): use a new --output for {config.method}"
    if then["optimizer"] != config.optimizer:
        return f"holds the state of --optimizer {then['optimizer']}: use a new --output for {config.optimizer}"
    if common["classes"] != classes:
        return f"was trained on other classes: {len(common['classes'])} of them, here {len(classes)}, or other names"
    return misfit(kept, weights)
