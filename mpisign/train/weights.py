"""Weights alone: a plain state_dict, as torch.save and torchvision write it, to begin with, to evaluate, to hand on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..report import records
from . import checkpoint

if TYPE_CHECKING:
    from typing import TypeGuard

    from torch import nn

    from ..ranks.launch import Comm

BEST = "best.pt"  # in the run's folder: the weights after the epoch with the best top-1


def load(comm: Comm, path: Path, model: nn.Module) -> None:
    """Load into a model the weights at `path`, which rank 0 reads; `model.pt` of a checkpoint will do. Collective.

    Raises:
        ValueError: on all ranks: the file is none of that, or of another model; nothing was changed.

    """
    fault, data = None, b""
    if comm.rank == 0:
        try:
            data = path.read_bytes()
            fault = misfit(weights_of(checkpoint.unpacked(data)), model.state_dict())
        except (OSError, ValueError) as error:
            fault = checkpoint.unreadable(error)
    fault = comm.bcast(fault)
    if fault is not None:
        raise ValueError(f"weights: {path} {fault}")
    model.load_state_dict(weights_of(checkpoint.unpacked(checkpoint.to_all(comm, data))))


def weights_of(kept: dict[str, Any]) -> dict[str, Any]:
    """Return the weights in what was read: all of it, or the model's part of a checkpoint of mpisign.train."""
    model = kept.get("model")
    return model if isinstance(model, dict) else kept


def misfit(kept: Mapping[str, Any], wanted: Mapping[str, Tensor]) -> str | None:
    """Say why these weights can't be those of a model, or None; `wanted` is the model's state_dict."""
    for name, weight in wanted.items():
        there = kept.get(name)
        if not is_plain(there) or there.shape != weight.shape:
            has = f"of shape {list(there.shape)}" if is_plain(there) else "missing"
            return f"holds another model: {name} is {has}, here of shape {list(weight.shape)}"
        if there.is_floating_point() != weight.is_floating_point() or there.is_complex():
            return f"holds another model: {name} is of {there.dtype}, here of {weight.dtype}"
        if not there.isfinite().all():
            return f"is damaged: {name} has values that are not finite"
    more = [name for name in kept if name not in wanted]
    return f"holds another model: it has {more[0]}, which is unknown here" if more else None


def is_plain(thing: object) -> TypeGuard[Tensor]:
    """Tell whether that is a tensor whose memory is as large as its shape says: not sparse, not a view of one value."""
    return (
        isinstance(thing, Tensor)
        and thing.layout == torch.strided
        and thing.numel() * thing.element_size() <= (thing.untyped_storage().nbytes())
    )


def keep_best(folder: Path, model: nn.Module) -> str | None:
    """Write the weights as the best ones; return None, or why that failed. Rank 0 alone."""
    state = {name: part.cpu() for name, part in model.state_dict().items()}
    try:
        records.write_bytes(folder / BEST, checkpoint.packed(state))
    except OSError as error:
        return str(error)
    return None
