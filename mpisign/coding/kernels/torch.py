"""The vote's coding in plain torch: for devices that Triton does not serve. `coding` checks the arguments and calls it.

It takes several passes and scratch of a byte or two a coordinate. Each operation is a kernel of its own, so nothing is
fused and float32 is rounded as everywhere. Words are int64, whose >> brings in the sign: it is masked where that shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..rules import BYTES, NORMAL_MEAN, NORMAL_UNIT, PAIRS, UNIFORM_MEAN, UNIFORM_UNIT, Rule
from ..sizes import BITS
from ..ties import GOLDEN, MIX_27, MIX_30, Tie, coin_key, mix

_ONES = 0x0101010101010101
# Times this, eight bytes of 0 or 1 become the eight bits of the top byte: byte i is moved from bit 8 i to bit 56 + i.
_GATHER = sum(1 << (56 - 7 * i) for i in range(8))
# Every second bit, every second two, every second four.
_PAIRS, _FOURS, _EIGHTS = 0x55 * _ONES, 0x33 * _ONES, 0x0F * _ONES


def pack(x: Tensor, words: Tensor) -> None:
    """Pack the signs of `x`, float32 (n,), into words, int64 (W,)."""
    _pack_bits(torch.lt, x, words)


def _pack_bits(compare: Callable[..., Tensor], x: Tensor, words: Tensor) -> None:
    """Pack what `compare` says of `x` and 0."""
    told = torch.zeros(BITS * len(words), dtype=torch.bool, device=x.device)
    compare(x, 0, out=told[: x.numel()])
    eights = told.view(torch.int64).mul_(_GATHER) >> 56
    words.copy_(eights.to(torch.uint8).view(torch.int64))


def sign(
    gradient: Tensor, words: Tensor, rule: Rule, momentum: Tensor | None, moved: Tensor | None, zeros: Tensor | None,
    faults: Tensor | None, key: int,
) -> None:  # fmt: skip
    """Sign a gradient and move its momentum; see `bits.sign`."""
    # Not lerp_: on CUDA it fuses the multiplication with the addition and rounds once.
    d = gradient.to(torch.float32)
    d = d if momentum is None else d - momentum
    finite = d.isfinite()
    if faults is not None:
        faults += finite.numel() - finite.sum()
    u = d = torch.where(finite, d, torch.zeros_like(d) if momentum is None else 0 - momentum)
    if momentum is not None and moved is not None:
        if rule.vote != rule.keep:
            u = momentum + d * _float32(1 - rule.vote)
        torch.add(momentum, d.mul_(_float32(1 - rule.keep)), out=moved)
        u = moved if rule.vote == rule.keep else u
    if zeros is not None:
        _pack_bits(torch.eq, u, zeros)
    if rule.dither:
        u = u + _dither(rule, key, len(u), u.device).mul_(_float32(rule.scale))
    pack(u, words)


def _dither(rule: Rule, key: int, n: int, device: torch.device) -> Tensor:
    """Return the dither of n coordinates, float32 (n,); see `rules.Rule`."""
    x = _coins(key, 0, n, device)
    if rule.dither == "uniform":
        return _shifted(x, 40).to(torch.float32).mul_(UNIFORM_UNIT).sub_(UNIFORM_MEAN)
    pairs = (x & BYTES) + (_shifted(x, 8) & BYTES)
    return (_shifted(pairs * PAIRS, 48) - NORMAL_MEAN).to(torch.float32).mul_(_float32(NORMAL_UNIT))


def _float32(x: float) -> float:
    return float(np.float32(x))


def silent(gradient: Tensor, sizes: Sequence[int]) -> NDArray[np.bool_]:
    """Return which parts of a gradient are all 0 or -0.0, bool (len(sizes),); the host waits for it."""
    if not sizes:
        return np.zeros(0, np.bool_)
    # Sums of magnitudes, of all parts by one kernel: 0 if all are, and NaN and infinity are not 0.
    sums = torch._foreach_norm(gradient.split([*sizes]), 1)
    return torch.stack(sums).eq(0).cpu().numpy()


def count_ones(words: Tensor, total: Tensor) -> None:
    """Add the number of ones in `words` to `total`, (1,): in pairs, in fours, in bytes, which a product adds up."""
    x = words - (_shifted(words, 1) & _PAIRS)
    x = (x & _FOURS) + (_shifted(x, 2) & _FOURS)
    x = (x + _shifted(x, 4)) & _EIGHTS
    total += ((x * _ONES) >> 56).sum()


def count_differing(a: Tensor, b: Tensor, total: Tensor) -> None:
    """Add the number of bits in which `a` and `b` differ to `total`, (1,)."""
    count_ones(a ^ b, total)


def fill_zeros(words: Tensor, zeros: Tensor, key: int) -> None:
    """Set the bits of `words` that `zeros` marks where a coin falls so; see `bits.fill_zeros`."""
    words |= zeros & _coins(mix(key), 0, len(words), words.device)


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
