"""The majority of P sign vectors, exactly, and the counters that parts of a vote are merged with.

A counter is bit-sliced: plane k holds bit k of the count of negative votes, 64 coordinates to a word. Counters are
stored in blocks, `planes_GKB`: G blocks of K planes of B = BLOCK words, so that one block is one element of an MPI
reduction. Majority is not associative, so what is merged is counters, never votes.

Ties (only where P is even) go by a rule of TIES: `positive`, +1 as in the paper's code; `random`, a seeded coin per
coordinate and step, the same on all ranks; `zero`, no step at all, which takes a second row of words to say.
The kernels are loaded at the first call, for Numba takes a second to import.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .bits import Words, words_of
from .sizes import BLOCK, blocks_for, planes_for
from .ties import TIES, Tie, check_tie, coin_key


def _rows(tie: Tie, out: Words) -> tuple[Words, Words]:
    """Split `out` into the row of votes and, for the rule "zero", the row of ties."""
    return (out[0], out[1]) if tie.rule == "zero" else (out, out[:0])


def _tie(tie: str | Tie) -> Tie:
    tie = Tie(tie) if isinstance(tie, str) else tie
    check_tie(tie.rule)
    return tie


def coins(tie: Tie, W: int) -> Words:
    """Return the coins of a step, uint64 (W,): one bit a coordinate, 1 is negative."""
    from .kernels import counting as kernels

    out = np.empty(W, np.uint64)
    kernels.throw(np.uint64(coin_key(tie)), out)
    return out


def voted_shape(W: int, rule: str) -> tuple[int, ...]:
    """Return the shape of a vote's result: (W,), or (2, W) under the rule "zero", whose second row marks ties."""
    return (2, W) if rule == "zero" else (W,)


def vote_into(words: Words, tie: Tie, out: Words, ties: Words, first_word: int = 0) -> None:
    """Vote on `words`, uint64 (P, W), into `out`, (W,), which may be one of its rows.

    `ties`, (W,), receives the tied coordinates under the rule "zero", else it may be empty. `first_word` is the
    place of these words in the whole vector, so that whoever votes on a share throws the same coins.
    """
    from .kernels import counting as kernels

    ties[...] = 0
    rule, key = TIES.index(tie.rule), np.uint64(coin_key(tie))
    kernels.majority(words.reshape(-1), len(words), rule, key, first_word, out, ties)


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
    from .kernels import counting as kernels

    words = words_of("words", words, None, None)
    p, W = words.shape
    planes = words_of("planes", planes, blocks_for(W), None, BLOCK)
    K = planes.shape[1]
    if not 0 < planes_for(p) <= K:
        raise ValueError(f"planes: {K} planes cannot count {p} voters")
    kernels.count(words.reshape(-1), p, W, planes.reshape(-1), K)


def merge(a: Words, b: Words) -> None:
    """Add the counters `a` to `b`, in place; both uint64 (G, K, BLOCK). The sum must fit into K planes.

    Raises:
        ValueError: an array has another dtype, or the shapes differ.

    """
    from .kernels import counting as kernels

    a = words_of("a", a, None, None, BLOCK)
    b = words_of("b", b, *a.shape)
    kernels.merge_planes(a.reshape(-1), b.reshape(-1), a.shape[1])


def double(planes: Words) -> Words:
    """Return new counters of twice what `planes`, uint64 (G, K, BLOCK), count: (G, K + 1, BLOCK)."""
    G, K, B = planes.shape
    doubled = np.empty((G, K + 1, B), np.uint64)
    doubled[:, 0], doubled[:, 1:] = 0, planes
    return doubled


def decide(planes: Words, P: int, W: int, tie: str | Tie = "positive", *, out: Words | None = None) -> Words:
    """Turn the counters of P voters, uint64 (G, K, BLOCK), into the majority: as `majority` returns it.

    Raises:
        ValueError: an array has another dtype or shape, or the tie rule is unknown.

    """
    from .kernels import counting as kernels

    tie, planes = _tie(tie), words_of("planes", planes, blocks_for(W), None, BLOCK)
    shape = voted_shape(W, tie.rule)
    out = np.empty(shape, np.uint64) if out is None else words_of("out", out, *shape)
    voted, ties = _rows(tie, out)
    ties[...] = 0
    rule, key = TIES.index(tie.rule), np.uint64(coin_key(tie))
    kernels.decide(planes.reshape(-1), planes.shape[1], P, rule, key, voted, ties)
    return out
