"""The vote's coding in plain torch: for devices that Triton does not serve. `coding` checks the arguments and calls it.

It takes several passes and scratch of a byte or two a coordinate. Each operation is a kernel of its own, so nothing is
fused and float32 is rounded as everywhere. Words are int64, whose >> brings in the sign: it is masked where that shows.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..sizes import BITS
from ..ties import GOLDEN, MIX_27, MIX_30, Tie, coin_key

# Times this, eight bytes of 0 or 1 become the eight bits of the top byte: byte i is moved from bit 8 i to bit 56 + i.
_GATHER = sum(1 << (56 - 7 * i) for i in range(8))


def pack(x: Tensor, words: Tensor) -> None:
    """Pack the signs of `x`, float32 (n,), into words, int64 (W,)."""
    negative = torch.zeros(BITS * len(words), dtype=torch.bool, device=x.device)
    torch.lt(x, 0, out=negative[: x.numel()])
    eights = negative.view(torch.int64).mul_(_GATHER) >> 56
    words.copy_(eights.to(torch.uint8).view(torch.int64))


def momentum_pack(momentum: Tensor, gradient: Tensor, beta: float, words: Tensor) -> None:
    """Set m <- m + (1 - beta) * (g - m) in place and pack its signs."""
    # Not lerp_: on CUDA it fuses the multiplication with the addition and rounds once.
    momentum.add_((gradient - momentum).mul_(float(np.float32(1 - beta))))
    pack(momentum, words)


def unpack(planes: Tensor, x: Tensor) -> None:
    """Set `x`, float32 (n,), to -1 where the first row of `planes` has a 1, else +1; to 0 where a second row has."""
    x.copy_(_bits(planes[0], x.numel())).mul_(-2).add_(1)
    for ties in planes[1:]:
        x.masked_fill_(_bits(ties, x.numel()).to(torch.bool), 0)


def _bits(words: Tensor, n: int) -> Tensor:
    """Return the first n bits, uint8 (n,)."""
    shifts = torch.arange(8, dtype=torch.uint8, device=words.device)
    # A clone, for the step of a contiguous tensor of one word or none may be any, and a view in bytes refuses that.
    eights = words.clone(memory_format=torch.contiguous_format).view(torch.uint8)
    return ((eights[:, None] >> shifts) & 1).reshape(-1)[:n]


def majority(words: Tensor, tie: Tie, voted: Tensor, ties: Tensor, first_word: int) -> None:
    """Vote on `words`, int64 (P, W), into `voted`, (W,), which may be a row of them, and `ties`, (W,) or (0,)."""
    P, W = words.shape
    # The counters start so high that one vote more than half fills the top plane, which then is the answer.
    half = P // 2
    K = half.bit_length() + 1
    start = 2 ** (K - 1) - half - 1
    counters = [torch.full_like(words[0], -((start >> k) & 1)) for k in range(K)]
    for row in words:
        carry = row
        for k, plane in enumerate(counters):
            counters[k], carry = plane ^ carry, plane & carry
    more = counters.pop()
    tied = ~more if P % 2 == 0 else torch.zeros_like(more)
    for plane in counters:  # all full: one vote short of the top
        tied &= plane
    if tie.rule == "random":
        more |= tied & _coins(coin_key(tie), first_word, W, words.device)
    voted.copy_(more)
    if len(ties):
        ties.copy_(tied)


def _coins(key: int, first_word: int, W: int, device: torch.device) -> Tensor:
    """Throw the coins of the words from `first_word`: SplitMix64 in int64, which wraps as uint64 does."""
    x = torch.arange(first_word + 1, first_word + W + 1, device=device) * signed(GOLDEN) + signed(key)
    x = (x ^ _shifted(x, 30)) * signed(MIX_30)
    x = (x ^ _shifted(x, 27)) * signed(MIX_27)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    return torch.bitwise_and(x >> by, 2 ** (BITS - by) - 1)


def signed(word: int) -> int:
    """Return the int64 that has the bits of a uint64."""
    return word - 2**BITS if word >> (BITS - 1) else word
