"""The optimizer that takes voted signs for its gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch.optim import SGD


def optimizer(parameters: Iterable[Any], lr: float, *, weight_decay: float = 0.0) -> SGD:
    """Return the optimizer of the vote: x <- x - lr * (vote + weight_decay * x), in place.

    It has no momentum: that is in VoteState, before the sign. Every coordinate moves by lr in a step, whatever its
    gradient, so lr has the meaning, and about the size, that it has with Adam.

    Args:
        parameters: Tensors, named tensors or groups of them, as torch's optimizers take them.
        lr: How far a coordinate moves in a step.
        weight_decay: Of all parameters; a group's own setting goes before it.

    Raises:
        ValueError: lr or weight_decay is negative.

    """
    import torch

    return torch.optim.SGD(parameters, lr=lr, momentum=0.0, weight_decay=weight_decay)
