"""What must not be done to a vote in a training script: each kind is refused by one line that names the cure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.parallel import DistributedDataParallel
    from torch.optim import Optimizer

SAMPLE = 64  # coordinates of a gradient that are looked at

_OPTIMIZER = (
    "use mpisign.optimizer(parameters, lr=...), or torch.optim.SGD(parameters, lr=..., momentum=0): "
    "the momentum is in VoteState, before the sign"
)
_SCALER = "use no GradScaler (bfloat16 autocast, or none: votes need no scaling)"
_CLIPPING = (
    "do not clip or scale after backward: the norm of n votes is always sqrt(n), a vote is its own clipping, "
    "and lr is the size of a step"
)
_ADDITION = (
    "call zero_grad() between steps, accumulate under model.no_sync() in all backwards but the last, "
    "and leave weight decay to the optimizer"
)
SECOND_BACKWARD = (
    "backward: a gradient was added to votes that an earlier backward had left in .grad: call zero_grad() before, or, "
    "to accumulate gradients, put model.no_sync() around all backwards but the last; for one that only passes through "
    "(a GAN's, for its generator): model.requires_grad_(False) or model.no_sync()"
)
DISCARDED = (
    "backward: the votes of the backward before were not used by any optimizer step, but the momentum has taken in "
    "their gradient: put model.requires_grad_(False) or model.no_sync() around a backward that only passes through "
    "(a GAN's, for its generator), call state.rollback() where a step is skipped, or make "
    "VoteState(..., revocable=True), which takes such steps back"
)


def check_features(model: DistributedDataParallel) -> None:
    """Check that DDP hands all gradients of a model to its hook.

    Raises:
        ValueError: it averages some of them by itself.

    """
    if model._delay_all_reduce_params:
        raise ValueError(
            "DistributedDataParallel: delay_all_reduce_named_params are averaged without the hook, and would not be "
            "voted on: leave it out"
        )


def check_ranks(voters: Sequence[int], averaged: Sequence[int]) -> None:
    """Compare the ranks that vote with those that DDP averages over, both as global ranks in their order.

    Raises:
        ValueError: they are not the same, or not in the same order.

    """
    if list(voters) == list(averaged):
        return
    cure = "mpisign.VoteState() takes torch's own process group; one of a part of the ranks is VoteState(group)"
    if len(voters) != len(averaged):
        ranks = "1 rank" if len(voters) == 1 else f"{len(voters)} ranks"
        started = "; started by torchrun, not mpirun?" if len(voters) == 1 else ""
        raise ValueError(f"ranks: the votes are among {ranks}, but DDP averages over {len(averaged)}{started} {cure}")
    kind = "in the order" if sorted(voters) == sorted(averaged) else "among ranks"
    raise ValueError(f"ranks: the votes are {kind} {_named(voters)}, but DDP has {_named(averaged)}: {cure}")


def _named(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")


def check_settings(optimizer: Optimizer, group: dict[str, Any]) -> None:
    """Check the optimizer of a group of voted parameters.

    Raises:
        ValueError: it has a momentum of its own, or divides a gradient by its size, as Adam does.

    """
    kind = type(optimizer)
    momentum = group.get("momentum", 0)
    if isinstance(momentum, (int, float)) and momentum != 0:
        raise ValueError(f"{kind.__name__}: momentum={momentum} would average votes: {_OPTIMIZER}")
    own = any(_is_of_torch(base) for base in kind.__mro__)
    if own or not group.keys().isdisjoint(("betas", "beta1", "eps")):
        raise ValueError(f"{kind.__name__}: is made for gradients, not for votes, which have no size: {_OPTIMIZER}")


def _is_of_torch(kind: type) -> bool:
    """Return whether this is an optimizer of torch's own that does more than SGD."""
    plain = (torch.optim.Optimizer, torch.optim.SGD)
    return kind.__module__.partition(".optim.")[0] == "torch" and kind not in plain


def check_scaler(optimizer: Optimizer) -> None:
    """Check that no GradScaler leaves it to this (fused) optimizer to divide the votes.

    Raises:
        ValueError: one does.

    """
    if getattr(optimizer, "grad_scale", None) is not None:
        raise ValueError(f"optimizer.step: a GradScaler would divide the votes by its scale: {_SCALER}")


def check_votes(values: Sequence[float]) -> None:
    """Check values of a gradient that was voted on, just before they are used.

    Raises:
        ValueError: they are votes no longer; it says what they look like.

    """
    if are_votes(values):
        return
    sizes = {abs(value) for value in values} - {0.0}
    size = sizes.pop()
    if sizes or not math.isfinite(size):
        raise ValueError(f"optimizer.step: something was added to the votes in .grad: {_ADDITION}")
    if size < 1 and math.frexp(size)[0] == 0.5:  # a power of 2
        raise ValueError(f"optimizer.step: the votes were divided by {1 / size:.0f}, as by a GradScaler: {_SCALER}; "
                         f"{_CLIPPING}")  # fmt: skip
    raise ValueError(f"optimizer.step: the votes were multiplied by {size:.4g}, as by clip_grad_norm_: {_CLIPPING}; "
                     f"{_ADDITION}")  # fmt: skip


def are_votes(values: Sequence[float]) -> bool:
    """Return whether all values are -1, 0 or 1."""
    return set(map(abs, values)) <= {0.0, 1.0}


def can_be_read(gradient: Tensor | None) -> bool:
    """Return whether it is a plain tensor: no placement across devices, not sparse."""
    return gradient is not None and type(gradient) is Tensor and gradient.layout is torch.strided


def sample(gradient: Tensor, turn: int) -> list[float]:
    """Return up to SAMPLE values of a gradient, in each turn others. On a device, the host waits for them."""
    if not gradient.is_contiguous():  # to flatten all of it would copy all of it
        gradient = gradient[turn % len(gradient)]
    flat = gradient.detach().flatten()
    stride = max(1, math.ceil(flat.numel() / SAMPLE))
    values: list[float] = flat[turn % stride :: stride].tolist()
    return values
