"""The Numba kernels that count votes, on flat contiguous arrays. `coding.counting` checks the arguments."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..sizes import BLOCK
from ..ties import GOLDEN, MIX_27, MIX_30
from .jit import kernel
from .simd import LANES, load, prefetch, spread, store, tally


@kernel
def mix(x: Any) -> Any:
    """Scramble 64 bits: SplitMix64's finalizer."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(MIX_30)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(MIX_27)
    return x ^ (x >> np.uint64(31))


@kernel
def coins(key: Any, index: int) -> Any:
    """Throw 64 coins: output number `index` of SplitMix64."""
    return mix(key + np.uint64(index + 1) * np.uint64(GOLDEN))


@kernel
def throw(key: Any, out: Any) -> None:
    """Set `out` to the coins of its words."""
    for w in range(len(out)):
        out[w] = coins(key, w)


@kernel
def _full_add(a: Any, b: Any, c: Any) -> Any:
    half = a ^ b
    return half ^ c, (a & b) | (half & c)


def _adder(rows: int) -> Any:
    """Make the kernel that adds `rows` rows (1, 3, 7, 15: a carry-save network each) to a block of planes."""
    counted = rows.bit_length()

    @kernel
    def add(words: Any, at: int, stride: int, planes: Any, K: int, fresh: bool) -> None:
        for w in range(0, BLOCK, LANES):
            # The next block of the same rows: the prefetchers lose them while other rows are read.
            for r in range(rows):
                prefetch(words, at + w + r * stride + BLOCK)
            sums = tally(words, at + w, stride, rows)
            carry = sums[0] ^ sums[0]
            if fresh:
                for k in range(counted):
                    store(planes, k * BLOCK + w, sums[k])
                for k in range(counted, K):
                    store(planes, k * BLOCK + w, carry)
            else:
                for k in range(counted):
                    kept, carry = _full_add(load(planes, k * BLOCK + w), sums[k], carry)
                    store(planes, k * BLOCK + w, kept)
                for k in range(counted, K):
                    before = load(planes, k * BLOCK + w)
                    store(planes, k * BLOCK + w, before ^ carry)
                    carry = before & carry

    return add


def _elector(rows: int) -> Any:
    """Make the kernel that votes on 2^m - 1 rows in registers: more than half is 2^(m - 1), so the top plane is it."""
    top = rows.bit_length() - 1

    @kernel
    def elect(words: Any, at: int, stride: int, out: Any, to: int) -> None:
        for w in range(0, BLOCK, LANES):
            store(out, to + w, tally(words, at + w, stride, rows)[top])

    return elect


_add15, _add7, _add3, _add1 = _adder(15), _adder(7), _adder(3), _adder(1)
_elect15, _elect7, _elect3 = _elector(15), _elector(7), _elector(3)


@kernel
def _count_block(words: Any, P: int, stride: int, start: int, planes: Any, K: int) -> None:
    """Count the block of BLOCK words at `start` in P rows that lie `stride` words apart."""
    p = 0
    while p < P:
        at, left, fresh = start + p * stride, P - p, p == 0
        if left >= 15:
            _add15(words, at, stride, planes, K, fresh)
            p += 15
        elif left >= 7:
            _add7(words, at, stride, planes, K, fresh)
            p += 7
        elif left >= 3:
            _add3(words, at, stride, planes, K, fresh)
            p += 3
        else:
            _add1(words, at, stride, planes, K, fresh)
            p += 1


@kernel
def _more_block(planes: Any, K: int, half: int, out: Any, at: int) -> None:
    """Set BLOCK words of `out` from `at` on where count > half."""
    for w in range(0, BLOCK, LANES):
        more = spread(np.uint64(0))
        for k in range(K):  # compare with the constant from the lowest plane up
            bit = load(planes, k * BLOCK + w)
            more = bit & more if (half >> k) & 1 else bit | more
        store(out, at + w, more)


@kernel
def _same_block(planes: Any, K: int, half: int, out: Any) -> None:
    """Set BLOCK words of `out` where count == half."""
    for w in range(0, BLOCK, LANES):
        same = spread(~np.uint64(0))
        for k in range(K):
            bit = load(planes, k * BLOCK + w)
            same = bit & same if (half >> k) & 1 else same ^ (bit & same)
        store(out, w, same)


@kernel
def _decide_block(planes: Any, K: int, P: int, rule: int, key: Any, first: int, out: Any, ties: Any, at: int) -> None:
    """Decide a block and write it to `out`, and under "zero" to `ties`, from word `at` to their end at most.

    `first` is the place of word 0 of `out` in the whole vector, for the coins of TIES[rule].
    """
    stop = min(at + BLOCK, len(out))
    if stop - at == BLOCK:
        _more_block(planes, K, P // 2, out, at)
    else:
        scratch = np.empty(BLOCK, np.uint64)
        _more_block(planes, K, P // 2, scratch, 0)
        out[at:stop] = scratch[: stop - at]
    if rule and P % 2 == 0:
        tied = np.empty(BLOCK, np.uint64)
        _same_block(planes, K, P // 2, tied)
        if rule == 2:
            ties[at:stop] = tied[: stop - at]
        else:
            for w in range(at, stop):
                out[w] |= tied[w - at] & coins(key, first + w)


@kernel
def majority(words: Any, P: int, rule: int, key: Any, first: int, out: Any, ties: Any) -> None:
    """Set `out`, (W,), to the majority of P rows of W words; `rule`, `first` and `ties` as in `_decide_block`."""
    W, K = len(out), _bits(P)
    planes = np.empty(K * BLOCK, np.uint64)
    for at in range(0, W, BLOCK):
        if at + BLOCK > W:
            _count_block(_edge(words, P, W, at), P, BLOCK, 0, planes, K)
        elif P == 3:
            _elect3(words, at, W, out, at)
            continue
        elif P == 7:
            _elect7(words, at, W, out, at)
            continue
        elif P == 15:
            _elect15(words, at, W, out, at)
            continue
        else:
            _count_block(words, P, W, at, planes, K)
        _decide_block(planes, K, P, rule, key, first, out, ties, at)


@kernel
def _bits(P: int) -> int:
    K = 0
    while P >> K:
        K += 1
    return K


@kernel
def _edge(words: Any, P: int, W: int, start: int) -> Any:
    """Copy the last, incomplete block of P rows, filled up with zeros."""
    edge = np.zeros(P * BLOCK, np.uint64)
    for p in range(P):
        for w in range(start, W):
            edge[p * BLOCK + w - start] = words[p * W + w]
    return edge


@kernel
def count(words: Any, P: int, W: int, planes: Any, K: int) -> None:
    """Set the counters `planes` to the counts of P rows of W words."""
    for g in range(-(-W // BLOCK)):
        block = planes[g * K * BLOCK : (g + 1) * K * BLOCK]
        if (g + 1) * BLOCK <= W:
            _count_block(words, P, W, g * BLOCK, block, K)
        else:
            _count_block(_edge(words, P, W, g * BLOCK), P, BLOCK, 0, block, K)


@kernel
def decide(planes: Any, K: int, P: int, rule: int, key: Any, out: Any, ties: Any) -> None:
    """Set `out` to the majority that the counters of P voters hold; `rule` and `ties` as in `_decide_block`."""
    for at in range(0, len(out), BLOCK):
        _decide_block(planes[at * K : (at + BLOCK) * K], K, P, rule, key, 0, out, ties, at)


@kernel
def merge_planes(a: Any, b: Any, K: int) -> None:
    """Add the counters `a` to `b`, in place; both are flat planes_GKB of K planes. C calls it too, by `merging`."""
    for at in range(0, len(a), K * BLOCK):
        for w in range(at, at + BLOCK, LANES):
            carry = spread(np.uint64(0))
            for k in range(K):
                kept, carry = _full_add(load(a, w + k * BLOCK), load(b, w + k * BLOCK), carry)
                store(b, w + k * BLOCK, kept)
