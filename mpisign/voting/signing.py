"""What a worker signs of a bucket: its rule, its momentum, and how it votes where that is 0."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..coding import coding
from .roll import pieces

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..coding.rules import Rule
    from .bucket import Bucket
    from .momentum import Momentum
    from .tensors import Plan


def fill(
    plan: Plan,
    bucket: Bucket,
    absent: NDArray[np.bool_],
    *,
    rule: Rule,
    momentum: Momentum,
    random_zeros: bool,
    key: int,
) -> int:
    """Fill the words of a plan, and where it abstains; move the momentum, but that of absent parts: it rests.

    `key` seeds the coins of the rule and of `random_zeros`. Return how many coordinates are not finite.
    """
    buffer = bucket.buffer()
    held: Any = None  # a Tensor, where the rule has a momentum
    moved: Any = None
    if rule.has_momentum:
        held, moved = momentum.of(bucket), momentum.next_of(bucket)
    parts = [] if held is None else pieces(absent, [parameter.numel() for parameter in bucket.parameters()])
    resting = [(part, held[part].clone()) for part in parts]
    zeros = torch.empty_like(plan.words) if random_zeros else plan.abstains
    faults = torch.zeros(1, dtype=torch.int64, device=buffer.device)
    coding.sign(buffer, plan.words, rule=rule, momentum=held, moved=moved, zeros=zeros, faults=faults, key=key)
    if random_zeros and zeros is not None:
        coding.fill_zeros(plan.words, zeros, key)
    for part, rested in resting:
        moved[part] = rested
    return int(faults)
