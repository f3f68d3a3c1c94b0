"""The mean that dense methods are held to: float64 sums, which share nothing with what they check."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ..ranks import patience
from ..ranks.agreement import differs
from .method import Standard

if TYPE_CHECKING:
    from ..coding.bits import Floats
    from ..ranks.launch import Comm

PIECE = 2**20  # coordinates that are sent at a time


class Mean:
    """The mean of all ranks' vectors, float64, on this rank's share of the coordinates. Collective.

    The vector is looked at piece by piece; 1 / P of each piece is this rank's. `size` is the mean of |x|, to which
    rounding is relative.
    """

    def __init__(self, comm: Comm, x: Floats) -> None:
        self.comm, P, self.n = comm, comm.size, len(x)
        self.mean, self.size = [], []
        patience.quiet_barrier(comm)
        for piece in self._pieces():
            bounds = self._bounds(piece)
            counts, mine = np.diff(bounds), bounds[comm.rank + 1] - bounds[comm.rank]
            received = np.empty((P, mine), np.float32)
            comm.Alltoallv([x[piece], counts], [received, np.full(P, mine)])
            self.mean.append(received.mean(axis=0, dtype=np.float64))
            self.size.append(np.abs(received).mean(axis=0, dtype=np.float64))

    def _pieces(self) -> Iterator[slice]:
        return (slice(start, min(start + PIECE, self.n)) for start in range(0, self.n, PIECE))

    def _bounds(self, piece: slice) -> list[int]:
        """Divide a piece among the ranks."""
        length, P = piece.stop - piece.start, self.comm.size
        return [piece.start + rank * length // P for rank in range(P + 1)]

    def wrong(self, result: Floats, truth: Standard) -> int:
        """Count the coordinates of this rank's share that are off by more than P + 2 operations of `truth` explain.

        One more is counted on each rank whose result is not rank 0's, bit for bit. Collective.
        """
        wrong = 0
        for piece, mean, size in zip(self._pieces(), self.mean, self.size, strict=True):
            start, stop = self._bounds(piece)[self.comm.rank :][:2]
            bound = (self.comm.size + 2) * (truth.roundoff * size + truth.underflow)
            bound += 1e-37  # what float32 loses near 0
            close = np.abs(result[start:stop] - mean) <= bound  # not `>`: a NaN that should not be there counts
            close |= np.isnan(mean) & np.isnan(result[start:stop])
            wrong += int(np.count_nonzero(~close))
        return wrong + differs(self.comm, result)
