"""The reference that the results of a run are compared with: plain votes and float64 means.

Votes are computed by NumPy's packbits and integer sums, means by float64 sums. The only kernel shared with what is
checked is that of the coins of ties, which the tests compare with Python's integers. Each rank computes 1 / P of the
reference from what all ranks put in.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ..coding import bits, counting
from ..coding.bits import Floats, Words
from ..coding.ties import Tie
from ..ranks import patience
from ..ranks.agreement import differs

if TYPE_CHECKING:
    from mpi4py import MPI

CHUNK = 2**16  # coordinates at a time: temporary arrays stay in the cache
PIECE = 2**20  # coordinates that are sent at a time
# The eight signs that each byte of a vote stands for.
_SIGNS = np.where(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"), -1, 1).astype("f4")


def _chunks(n: int, size: int = CHUNK) -> Iterator[slice]:
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def plain_words(gradient: Floats, momentum: Floats | None, beta: float) -> Words:
    """Pack the signs of the gradient, or of the momentum after its step; nothing is changed."""
    weight = np.float32(1 - beta)
    words = np.zeros(bits.words_for(len(gradient)) * 8, np.uint8)
    for part in _chunks(len(gradient)):
        x = gradient[part]
        if momentum is not None:
            x = momentum[part] + weight * (x - momentum[part])
        packed = np.packbits(x < 0, bitorder="little")
        words[part.start // 8 : part.start // 8 + len(packed)] = packed
    return words.view("<u8").astype(np.uint64, copy=False)


def plain_vote(comm: MPI.Comm, words: Words, tie: Tie, first: int = 0) -> Words:
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


class Mean:
    """The mean of all ranks' vectors, float64, on this rank's share of the coordinates. Collective.

    The vector is looked at piece by piece; 1 / P of each piece is this rank's. `size` is the mean of |x|, to which
    rounding is relative.
    """

    def __init__(self, comm: MPI.Comm, x: Floats) -> None:
        self.comm, P, self.n = comm, comm.size, len(x)
        self.mean, self.size = [], []
        patience.quiet_barrier(comm)
        for piece in _chunks(self.n, PIECE):
            bounds = self._bounds(piece)
            counts, mine = np.diff(bounds), bounds[comm.rank + 1] - bounds[comm.rank]
            received = np.empty((P, mine), np.float32)
            comm.Alltoallv([x[piece], counts], [received, np.full(P, mine)])
            self.mean.append(received.mean(axis=0, dtype=np.float64))
            self.size.append(np.abs(received).mean(axis=0, dtype=np.float64))

    def _bounds(self, piece: slice) -> list[int]:
        """Divide a piece among the ranks."""
        length, P = piece.stop - piece.start, self.comm.size
        return [piece.start + rank * length // P for rank in range(P + 1)]

    def wrong(self, result: Floats, roundoff: float, underflow: float = 0.0) -> int:
        """Count the coordinates of this rank's share that are off by more than P + 2 roundings explain.

        An operation may be off by `roundoff`, relative, and by `underflow`, absolute. One more is counted on each rank
        whose result is not rank 0's, bit for bit. Collective.
        """
        wrong = 0
        for piece, mean, size in zip(_chunks(self.n, PIECE), self.mean, self.size, strict=True):
            start, stop = self._bounds(piece)[self.comm.rank :][:2]
            bound = (self.comm.size + 2) * (roundoff * size + underflow) + 1e-37  # and what float32 loses near 0
            close = np.abs(result[start:stop] - mean) <= bound  # not `>`: a NaN that should not be there counts
            close |= np.isnan(mean) & np.isnan(result[start:stop])
            wrong += int(np.count_nonzero(~close))
        return wrong + differs(self.comm, result)
