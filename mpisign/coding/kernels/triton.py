"""The vote's coding on a CUDA device, in Triton. `coding` checks the arguments and calls it.

A word is handled as two int32 halves: on a little-endian machine bit i of the vector is bit i % 32 of half i // 32,
and a GPU's registers have 32 bits, so what is reduced across threads is half as wide. The whole blocks and the last one
take different branches: a mask whose edge may fall anywhere would cut all 16-byte accesses into single floats.
It needs Triton 3.3, which came with torch 2.7: kernels that hold tuples.
"""

# mypy: disable-error-code="assignment, var-annotated"

from __future__ import annotations

import numpy as np
import triton
import triton.language as tl
from torch import Tensor

from ..rules import BYTES, NORMAL_MEAN, NORMAL_UNIT, PAIRS, UNIFORM_MEAN, UNIFORM_UNIT, Rule
from ..sizes import words_for
from ..ties import GOLDEN, MIX_27, MIX_30, TIES, Tie, coin_key
from .torch import count_differing, count_ones, fill_zeros, signed, silent

# The counts and such are plain torch's here too.
__all__ = ["count_differing", "count_ones", "fill_zeros", "majority", "pack", "sign", "silent", "unpack"]

HALVES = 64  # halves of a program: 2048 coordinates, which are 16 a thread and so four 16-byte loads in flight
BLOCK = 256  # words of a program that votes: 16 bytes a thread and row
GROUP = 15  # rows that are added at once: a carry-save network of 11 adders, and the loads of all in flight
# A multiplication fused with an addition would round once where `bits` rounds twice. And a loop over rows is no
# pipeline: all loads of a round are in flight as it is.
OPTIONS = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": False}

_GOLDEN, _MIX_30, _MIX_27 = tl.constexpr(GOLDEN), tl.constexpr(MIX_30), tl.constexpr(MIX_27)
_UNIFORM_UNIT, _UNIFORM_MEAN = tl.constexpr(UNIFORM_UNIT), tl.constexpr(UNIFORM_MEAN)
_NORMAL_UNIT, _NORMAL_MEAN = tl.constexpr(float(np.float32(NORMAL_UNIT))), tl.constexpr(NORMAL_MEAN)
_BYTES, _PAIRS = tl.constexpr(BYTES), tl.constexpr(PAIRS)


@triton.jit
def _coins(key, index):
    """Throw the coins of the words `index`, in uint64, whose >> brings in zeros."""
    x = key.to(tl.uint64) + (index + 1).to(tl.uint64) * _GOLDEN
    x = (x ^ (x >> 30)) * _MIX_30
    x = (x ^ (x >> 27)) * _MIX_27
    return x ^ (x >> 31)


@triton.jit
def _dither(key, index, DITHER: tl.constexpr):
    """Return the dither of the coordinates `index`; see `rules.Rule`."""
    x = _coins(key, index)
    if DITHER == "uniform":
        return (x >> 40).to(tl.int32).to(tl.float32) * _UNIFORM_UNIT - _UNIFORM_MEAN
    pairs = (x & _BYTES) + ((x >> 8) & _BYTES)
    return (((pairs * _PAIRS) >> 48).to(tl.int32) - _NORMAL_MEAN).to(tl.float32) * _NORMAL_UNIT


@triton.jit
def _pack_halves(bits, lane):
    return tl.sum(bits.to(tl.int32) << lane[None, :], axis=1)  # bits that differ: a sum without carries


# n is not specialized: a bucket of 1 or of a multiple of 16 coordinates shall not be compiled again.
@triton.jit(do_not_specialize=["n"])
def _pack(x, words, n, HALVES: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * (HALVES * 32)
    half, lane = tl.arange(0, HALVES), tl.arange(0, 32)
    at = half[:, None] * 32 + lane[None, :]
    if first + HALVES * 32 <= n:
        loaded = tl.load(x + first + at)
    else:
        loaded = tl.load(x + first + at, mask=at < n - first, other=0.0)
    place = first // 32 + half
    tl.store(words.to(tl.pointer_type(tl.int32)) + place, _pack_halves(loaded < 0.0, lane), mask=place // 2 * 64 < n)


@triton.jit
def _move(gradient, momentum, moved, keep, vote, at, mask, other, MOMENTUM: tl.constexpr, TWO: tl.constexpr):
    """Return u and where g - m is finite, and store the moved momentum; see `bits.sign`."""
    d = tl.load(gradient + at, mask=mask, other=other).to(tl.float32)
    if MOMENTUM:
        m = tl.load(momentum + at, mask=mask, other=other)
        d = d - m
        finite = d - d == 0.0
        d = tl.where(finite, d, 0.0 - m)
        u = m + keep * d
        tl.store(moved + at, u, mask=mask)
        if TWO:
            u = m + vote * d
    else:
        finite = d - d == 0.0
        u = tl.where(finite, d, 0.0)
    return u, finite


@triton.jit(do_not_specialize=["n", "key"])
def _sign(
    gradient, momentum, moved, words, zeros, faults, n, keep, vote, scale, key,
    MOMENTUM: tl.constexpr, TWO: tl.constexpr, DITHER: tl.constexpr, ZEROS: tl.constexpr, FAULTS: tl.constexpr,
    HALVES: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * (HALVES * 32)
    half, lane = tl.arange(0, HALVES), tl.arange(0, 32)
    at = half[:, None] * 32 + lane[None, :]
    if first + HALVES * 32 <= n:
        u, finite = _move(
            gradient + first, momentum + first, moved + first, keep, vote, at, None, None, MOMENTUM, TWO
        )  # fmt: skip
    else:
        u, finite = _move(
            gradient + first, momentum + first, moved + first, keep, vote, at, at < n - first, 0.0, MOMENTUM, TWO
        )  # fmt: skip
    place = first // 32 + half
    inside = place // 2 * 64 < n
    if FAULTS:
        found = tl.sum(tl.sum(tl.where(finite, 0, 1), axis=1), axis=0)
        if found > 0:
            tl.atomic_add(faults, found.to(tl.int64))
    if ZEROS:
        zero = (u == 0.0) & (at < n - first)
        tl.store(zeros.to(tl.pointer_type(tl.int32)) + place, _pack_halves(zero, lane), mask=inside)
    negative = u < 0.0
    if DITHER != "":
        negative = (u + scale * _dither(key, first + at, DITHER) < 0.0) & (at < n - first)
    tl.store(words.to(tl.pointer_type(tl.int32)) + place, _pack_halves(negative, lane), mask=inside)


@triton.jit(do_not_specialize=["n"])
def _unpack(words, ties, x, n, TIED: tl.constexpr, HALVES: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * (HALVES * 32)
    half, lane = tl.arange(0, HALVES), tl.arange(0, 32)
    place = first // 32 + half
    inside = place * 32 < n
    negative = tl.load(words.to(tl.pointer_type(tl.int32)) + place, mask=inside, other=0)
    signs = tl.where((negative[:, None] >> lane[None, :]) & 1 != 0, -1.0, 1.0)
    if TIED:
        tied = tl.load(ties.to(tl.pointer_type(tl.int32)) + place, mask=inside, other=0)
        signs = tl.where((tied[:, None] >> lane[None, :]) & 1 != 0, 0.0, signs)
    at = half[:, None] * 32 + lane[None, :]
    if first + HALVES * 32 <= n:
        tl.store(x + first + at, signs)
    else:
        tl.store(x + first + at, signs, mask=at < n - first)


@triton.jit
def _full_add(a, b, c):
    half = a ^ b
    return half ^ c, (a & b) | (half & c)


@triton.jit
def _add(planes, column, K: tl.constexpr, GROUP: tl.constexpr):
    """Add GROUP votes to counters of K planes: three bits of one weight become one of it and one of the next."""
    added = ()
    carry = column[0] ^ column[0]
    for k in tl.static_range(K):
        carries = ()
        for _ in tl.static_range(GROUP >> (k + 1)):
            kept, up = _full_add(column[0], column[1], column[2])
            column = column[3:]
            column += (kept,)
            carries += (up,)
        if GROUP >> k > 0:
            kept, carry = _full_add(planes[k], column[0], carry)
        else:
            kept, carry = planes[k] ^ carry, planes[k] & carry
        added += (kept,)
        column = carries
    return added


@triton.jit(do_not_specialize=["key", "first_word"])
def _majority(
    words, voted, ties, W, key, first_word,
    P: tl.constexpr, K: tl.constexpr, START: tl.constexpr, RULE: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < W
    planes = ()
    for k in tl.static_range(K):
        planes += (tl.full([BLOCK], -((START >> k) & 1), tl.int64),)
    # A loop that stays one, so that the code for a thousand voters is as short as for thirty.
    for _ in range(P // GROUP):
        column = ()
        for _r in tl.static_range(GROUP):
            column += (tl.load(words + at, mask=inside, other=0),)
            words += W
        planes = _add(planes, column, K, GROUP)
    if P % GROUP > 0:
        column = ()
        for r in tl.static_range(GROUP):
            if r < P % GROUP:
                column += (tl.load(words + at, mask=inside, other=0),)
                words += W
            else:  # the compiler takes out the adders of what is always 0
                column += (tl.zeros([BLOCK], tl.int64),)
        planes = _add(planes, column, K, GROUP)
    more = planes[K - 1]
    if RULE > 0:
        tied = tl.zeros([BLOCK], tl.int64)
        if P % 2 == 0:  # all planes below the top full: one vote short of it
            tied = ~more
            for k in tl.static_range(K - 1):
                tied = tied & planes[k]
        if RULE == 1:
            more = more | (tied & _coins(key, first_word + at).to(tl.int64))
        else:
            tl.store(ties + at, tied, mask=inside)
    tl.store(voted + at, more, mask=inside)


def pack(x: Tensor, words: Tensor) -> None:
    """Pack the signs of `x`, float32 (n,), into words, int64 (W,)."""
    n = x.numel()
    if n:
        _pack[_programs(n)](x, words, n, HALVES=HALVES, **OPTIONS)


def sign(
    gradient: Tensor, words: Tensor, rule: Rule, momentum: Tensor | None, moved: Tensor | None, zeros: Tensor | None,
    faults: Tensor | None, key: int,
) -> None:  # fmt: skip
    """Sign a gradient and move its momentum, in one pass; see `bits.sign`."""
    n = gradient.numel()
    keep, vote, scale = (float(np.float32(x)) for x in (1 - rule.keep, 1 - rule.vote, rule.scale))
    # What is not there is not touched: any pointer will do.
    tensors = [gradient if x is None else x for x in (momentum, moved, words, zeros, faults)]
    if n:
        _sign[_programs(n)](
            gradient, *tensors, n, keep, vote, scale, signed(key),
            MOMENTUM=momentum is not None, TWO=rule.vote != rule.keep, DITHER=rule.dither, ZEROS=zeros is not None,
            FAULTS=faults is not None, HALVES=HALVES, **OPTIONS,
        )  # fmt: skip


def unpack(planes: Tensor, x: Tensor) -> None:
    """Set `x`, float32 (n,), to -1 where the first row of `planes` has a 1, else +1; to 0 where a second row has."""
    n = x.numel()
    if n:
        _unpack[_programs(n)](planes[0], planes[-1], x, n, TIED=len(planes) == 2, HALVES=HALVES, **OPTIONS)


def majority(words: Tensor, tie: Tie, voted: Tensor, ties: Tensor, first_word: int) -> None:
    """Vote on `words`, int64 (P, W), into `voted`, (W,), which may be a row of them, and `ties`, (W,) or (0,)."""
    P, W = words.shape
    # The counters start so high that one vote more than half fills the top plane, which then is the answer.
    half = P // 2
    K = half.bit_length() + 1
    key = signed(coin_key(tie)) if tie.rule == "random" else 0
    if W:
        _majority[(-(-W // BLOCK),)](
            words, voted, ties if len(ties) else voted, W, key, first_word,
            P=P, K=K, START=2 ** (K - 1) - half - 1, RULE=TIES.index(tie.rule), GROUP=GROUP, BLOCK=BLOCK, **OPTIONS,
        )  # fmt: skip


def _programs(n: int) -> tuple[int]:
    return (-(-2 * words_for(n) // HALVES),)
