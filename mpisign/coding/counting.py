"""The majority of P sign vectors, exactly, and the counters that parts of a vote are merged with.

A counter is bit-sliced: plane k holds bit k of the count of negative votes, 64 coordinates to a word. Counters are
stored in blocks, `planes_GKB`: G blocks of K planes of B = BLOCK words, so that one block is one element of an MPI
reduction. Majority is not associative, so what is merged is counters, never votes.

Ties (only where P is even) go by a rule of TIES: `positive`, +1 as in the paper's code; `random`, a seeded coin per
coordinate and step, the same on all ranks; `zero`, no step at all, which takes a second row of words to say.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .bits import Words, words_of
from .kernels.jit import kernel
from .kernels.simd import LANES, load, prefetch, spread, store, tally
from .sizes import BLOCK as BLOCK
from .sizes import blocks_for as blocks_for
from .sizes import planes_for as planes_for
from .ties import GOLDEN, MIX_27, MIX_30, TIES, Tie, check_tie


@kernel
def _mix(x: Any) -> Any:
    """Scramble 64 bits: SplitMix64's finalizer."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(MIX_30)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(MIX_27)
    return x ^ (x >> np.uint64(31))


@kernel
def _coins(key: Any, index: int) -> Any:
    return _mix(key + np.uint64(index + 1) * np.uint64(GOLDEN))


def coin_key(tie: Tie) -> np.uint64:
    """Return what seeds the coins of one step."""
    with np.errstate(over="ignore"):
        return np.uint64(_mix(_mix(np.uint64(tie.seed % 2**64)) + np.uint64(tie.step % 2**64)))


@kernel
def _throw(key: Any, out: Any) -> None:
    for w in range(len(out)):
        out[w] = _coins(key, w)


def coins(tie: Tie, W: int) -> Words:
    """Return the coins of a step, uint64 (W,): one bit a coordinate, 1 is negative."""
    out = np.empty(W, np.uint64)
    _throw(coin_key(tie), out)
    return out


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
                out[w] |= tied[w - at] & _coins(key, first + w)


@kernel
def _majority(words: Any, P: int, rule: int, key: Any, first: int, out: Any, ties: Any) -> None:
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
def _count(words: Any, P: int, W: int, planes: Any, K: int) -> None:
    for g in range(-(-W // BLOCK)):
        block = planes[g * K * BLOCK : (g + 1) * K * BLOCK]
        if (g + 1) * BLOCK <= W:
            _count_block(words, P, W, g * BLOCK, block, K)
        else:
            _count_block(_edge(words, P, W, g * BLOCK), P, BLOCK, 0, block, K)


@kernel
def _decide(planes: Any, K: int, P: int, rule: int, key: Any, out: Any, ties: Any) -> None:
    for at in range(0, len(out), BLOCK):
        _decide_block(planes[at * K : (at + BLOCK) * K], K, P, rule, key, 0, out, ties, at)


@kernel
def merge_planes(a: Any, b: Any, K: int) -> None:
    """Add the counters `a` to `b`, in place; both are flat planes_GKB of K planes. C calls it too, by `native`."""
    for at in range(0, len(a), K * BLOCK):
        for w in range(at, at + BLOCK, LANES):
            carry = spread(np.uint64(0))
            for k in range(K):
                kept, carry = _full_add(load(a, w + k * BLOCK), load(b, w + k * BLOCK), carry)
                store(b, w + k * BLOCK, kept)


def _rows(tie: Tie, out: Words) -> tuple[Words, Words]:
    """Split `out` into the row of votes and, for the rule "zero", the row of ties."""
    return (out[0], out[1]) if tie.rule == "zero" else (out, out[:0])


def _tie(tie: str | Tie) -> Tie:
    tie = Tie(tie) if isinstance(tie, str) else tie
    check_tie(tie.rule)
    return tie


def voted_shape(W: int, rule: str) -> tuple[int, ...]:
    """Return the shape of a vote's result: (W,), or (2, W) under the rule "zero", whose second row marks ties."""
    return (2, W) if rule == "zero" else (W,)


def vote_into(words: Words, tie: Tie, out: Words, ties: Words, first_word: int = 0) -> None:
    """Vote on `words`, uint64 (P, W), into `out`, (W,), which may be one of its rows.

    `ties`, (W,), receives the tied coordinates under the rule "zero", else it may be empty. `first_word` is the
    place of these words in the whole vector, so that whoever votes on a share throws the same coins.
    """
    ties[...] = 0
    _majority(words.reshape(-1), len(words), TIES.index(tie.rule), coin_key(tie), first_word, out, ties)


def majority(words: Any, tie: str | Tie = "positive", *, out: Words | None = None) -> Words:
    """Return the majority of P sign vectors.

    `words` is uint64 (P, W), P >= 1, contiguous. The result is uint64 (W,), or (2, W) under the tie rule "zero",
    whose second row marks the tied coordinates (their bit in the first row is 0). `out` receives it if given.

    Raises:
        ValueError: an array has another dtype or shape, P is 0, or the tie rule is unknown.

    """
    tie, words = _tie(tie), words_of("words", words, None, None)
    P, W = words.shape
    if not P:
        raise ValueError("words: no voters")
    shape = voted_shape(W, tie.rule)
    out = np.empty(shape, np.uint64) if out is None else words_of("out", out, *shape)
    vote_into(words, tie, *_rows(tie, out))
    return out


def count(words: Any, planes: Words) -> None:
    """Count P rows of words, uint64 (p, W), into counters, uint64 (G, K, BLOCK), which are overwritten.

    Raises:
        ValueError: an array has another dtype or shape, or K planes cannot count to p.

    """
    words = words_of("words", words, None, None)
    p, W = words.shape
    planes = words_of("planes", planes, blocks_for(W), None, BLOCK)
    K = planes.shape[1]
    if not 0 < planes_for(p) <= K:
        raise ValueError(f"planes: {K} planes cannot count {p} voters")
    _count(words.reshape(-1), p, W, planes.reshape(-1), K)


def merge(a: Words, b: Words) -> None:
    """Add the counters `a` to `b`, in place; both uint64 (G, K, BLOCK). The sum must fit into K planes.

    Raises:
        ValueError: an array has another dtype, or the shapes differ.

    """
    a = words_of("a", a, None, None, BLOCK)
    b = words_of("b", b, *a.shape)
    merge_planes(a.reshape(-1), b.reshape(-1), a.shape[1])


def decide(planes: Words, P: int, W: int, tie: str | Tie = "positive", *, out: Words | None = None) -> Words:
    """Turn the counters of P voters, uint64 (G, K, BLOCK), into the majority: as `majority` returns it.

    Raises:
        ValueError: an array has another dtype or shape, or the tie rule is unknown.

    """
    tie, planes = _tie(tie), words_of("planes", planes, blocks_for(W), None, BLOCK)
    shape = voted_shape(W, tie.rule)
    out = np.empty(shape, np.uint64) if out is None else words_of("out", out, *shape)
    voted, ties = _rows(tie, out)
    ties[...] = 0
    _decide(planes.reshape(-1), planes.shape[1], P, TIES.index(tie.rule), coin_key(tie), voted, ties)
    return out
