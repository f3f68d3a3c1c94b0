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

from ..sizes import words_for
from ..ties import GOLDEN, MIX_27, MIX_30, TIES, Tie, coin_key
from .torch import signed

HALVES = 64  # halves of a program: 2048 coordinates, which are 16 a thread and so four 16-byte loads in flight
BLOCK = 256  # words of a program that votes: 16 bytes a thread and row
GROUP = 15  # rows that are added at once: a carry-save network of 11 adders, and the loads of all in flight
# A multiplication fused with an addition would round once where `bits` rounds twice. And a loop over rows is no
# pipeline: all loads of a round are in flight as it is.
OPTIONS = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": False}

_GOLDEN, _MIX_30, _MIX_27 = tl.constexpr(GOLDEN), tl.constexpr(MIX_30), tl.constexpr(MIX_27)


@triton.jit
def _load_moved(momentum, gradient, weight, at, mask, other, MOMENTUM: tl.constexpr):
    """Return the gradient, or move the momentum towards it and return that."""
    x = tl.load(gradient + at, mask=mask, other=other)
    if MOMENTUM:
        m = tl.load(momentum + at, mask=mask, other=other)
        x = m + weight * (x - m)
        tl.store(momentum + at, x, mask=mask)
    return x


# n is not specialized: a bucket of 1 or of a multiple of 16 coordinates shall not be compiled again.
@triton.jit(do_not_specialize=["n"])
def _pack(momentum, gradient, weight, words, n, MOMENTUM: tl.constexpr, HALVES: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * (HALVES * 32)
    half, lane = tl.arange(0, HALVES), tl.arange(0, 32)
    at = half[:, None] * 32 + lane[None, :]
    if first + HALVES * 32 <= n:
        x = _load_moved(momentum + first, gradient + first, weight, at, None, None, MOMENTUM)
    else:
        x = _load_moved(momentum + first, gradient + first, weight, at, at < n - first, 0.0, MOMENTUM)
    halves = words.to(tl.pointer_type(tl.int32))
    packed = tl.sum((x < 0.0).to(tl.int32) << lane[None, :], axis=1)  # bits that differ: a sum without carries
    place = first // 32 + half
    tl.store(halves + place, packed, mask=place // 2 * 64 < n)


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


@triton.jit
def _coins(key, index):
    """Throw the coins of the words `index`, in uint64, whose >> brings in zeros."""
    x = key.to(tl.uint64) + (index + 1).to(tl.uint64) * _GOLDEN
    x = (x ^ (x >> 30)) * _MIX_30
    x = (x ^ (x >> 27)) * _MIX_27
    return (x ^ (x >> 31)).to(tl.int64)


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
            more = more | (tied & _coins(key, first_word + at))
        else:
            tl.store(ties + at, tied, mask=inside)
    tl.store(voted + at, more, mask=inside)


def pack(x: Tensor, words: Tensor) -> None:
    """Pack the signs of `x`, float32 (n,), into words, int64 (W,)."""
    _launch_pack(x, x, 0.0, words, False)


def momentum_pack(momentum: Tensor, gradient: Tensor, beta: float, words: Tensor) -> None:
    """Set m <- m + (1 - beta) * (g - m) in place and pack its signs, in one pass."""
    _launch_pack(momentum, gradient, float(np.float32(1 - beta)), words, True)


def _launch_pack(momentum: Tensor, gradient: Tensor, weight: float, words: Tensor, moves: bool) -> None:
    n = gradient.numel()
    if n:
        _pack[_programs(n)](momentum, gradient, weight, words, n, MOMENTUM=moves, HALVES=HALVES, **OPTIONS)


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
