"""Weights alone: a plain state_dict, as torch.save and torchvision write it, to begin with, to evaluate, to hand on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..report import records
from . import checkpoint

if TYPE_CHECKING:
    from torch import Tensor, nn

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
        except checkpoint.UNREADABLE as error:
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
        shape = getattr(kept.get(name), "shape", None)
        if shape != weight.shape:
            there = "missing" if shape is None else f"of shape {list(shape)}"
            return f"holds another model: {name} is {there}, here of shape {list(weight.shape)}"
    more = [name for name in kept if name not in wanted]
    return f"holds another model: it has {more[0]}, which is unknown here" if more else None


def keep_best(folder: Path, model: nn.Module) -> str | None:
    """Write the weights as the best ones; return None, or why that failed. Rank 0 alone."""
    state = {name: part.cpu() for name, part in model.state_dict().items()}
    try:
        records.write_bytes(folder / BEST, checkpoint.packed(state))
    except OSError as error:
        return str(error)
    return None
