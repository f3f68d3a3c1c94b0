"""The reference that votes are compared with, in the run itself: NumPy's packbits and integer sums.

The only kernel shared with what is checked is that of the coins of ties, which the tests hold to Python's integers.
Each rank computes 1 / P of the reference from what all ranks sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ..coding import counting
from ..coding.bits import Floats, Words
from ..coding.sizes import words_for
from ..coding.ties import Tie
from ..ranks import patience

if TYPE_CHECKING:
    from ..ranks.launch import Comm

CHUNK = 2**16  # coordinates at a time: temporary arrays stay in the cache
# The eight signs that each byte of a vote stands for.
_SIGNS = np.where(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"), -1, 1).astype("f4")


def _chunks(n: int) -> Iterator[slice]:
    for start in range(0, n, CHUNK):
        yield slice(start, min(start + CHUNK, n))


def plain_words(gradient: Floats, momentum: Floats | None, *, beta: float) -> Words:
    """Pack the signs of the gradient, or of the momentum after its step; nothing is changed."""
    weight = np.float32(1 - beta)
    words = np.zeros(words_for(len(gradient)) * 8, np.uint8)
    for part in _chunks(len(gradient)):
        x = gradient[part]
        if momentum is not None:
            x = momentum[part] + weight * (x - momentum[part])
        packed = np.packbits(x < 0, bitorder="little")
        words[part.start // 8 : part.start // 8 + len(packed)] = packed
    return words.view("<u8").astype(np.uint64, copy=False)


def plain_vote(comm: Comm, words: Words, *, tie: Tie, first: int = 0) -> Words:
    """Return the vote on all ranks' words, (W,) or (2, W), by adding up single bits. Collective.

    The words may be a piece of a longer vector, from its word `first` on.
    """
    P, W = comm.size, len(words)
    S = -(-W // P)
    sent, received = np.zeros((P, S), np.uint64), np.empty((P, S), np.uint64)
    sent.reshape(-1)[:W] = words
    patience.quiet_barrier(comm)
    comm.Alltoall(sent, received)
    mine = np.zeros((2, S), np.uint64)
    for start in range(0, S, CHUNK // 64):
        part = slice(start, min(start + CHUNK // 64, S))
        count = np.zeros(64 * (part.stop - part.start), np.int64)
        for row in received[:, part]:
            count += np.unpackbits(row.view(np.uint8), bitorder="little")
        for plane, mask in zip(mine, (2 * count > P, 2 * count == P), strict=True):
            plane[part] = np.packbits(mask, bitorder="little").view(np.uint64)
    every = np.empty((P, 2, S), np.uint64)
    patience.quiet_barrier(comm)
    comm.Allgather(mine, every)
    negative, tied = (np.ascontiguousarray(every[:, plane]).reshape(-1)[:W] for plane in (0, 1))
    if tie.rule == "random":
        return negative | (tied & counting.coins(tie, first + W)[first:])
    return np.stack([negative, tied]) if tie.rule == "zero" else negative


def wrong_signs(result: Floats, voted: Words) -> int:
    """Count the coordinates of `result`, float32 (n,), that are not the signs of `voted`, (W,) or (2, W)."""
    wrong, planes = 0, np.atleast_2d(voted).view(np.uint8)
    for part in _chunks(len(result)):
        octets = slice(part.start // 8, -(-part.stop // 8))
        truth = np.take(_SIGNS, planes[0, octets], axis=0)
        if len(planes) == 2:
            tied = np.unpackbits(planes[1, octets], bitorder="little").reshape(truth.shape)
            truth[tied == 1] = 0
        wrong += int(np.count_nonzero(result[part] != truth.reshape(-1)[: part.stop - part.start]))
    return wrong
