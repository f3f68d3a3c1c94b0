"""The mean that dense methods are held to: float64 sums, which share nothing with what they check.

Two things are held to what the rounding of P numbers and of their sums explains: each error by itself, to the worst
that can be, which grows with P until it says nothing; and the errors of a share together, to a few times their
expected square.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..ranks import patience

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..coding.bits import Floats
    from ..ranks.launch import Comm
    from .method import Standard

PIECE = 2**20  # coordinates that are sent at a time, at the least; more on more than 64 ranks
KAPPA = 0.4247  # the root mean square of a rounding error in units of roundoff * |x|: uniform; 1/x in an octave of x
TIMES = 8.0  # how much of the expected square of errors is let pass: orders and vectors of equal numbers need it
TINY = 1e-37  # what float32 loses near 0


class Share(NamedTuple):
    """What is known of m coordinates of all ranks' vectors, computed in float64; statistics of what is finite alone."""

    mean: NDArray[np.float64]  # (m,)
    size: Floats  # (m,), the mean of |x|; infinite where a rank's is
    deviation: Floats  # (m,), of the ranks from the mean
    squares: float  # the sum of all x^2
    largest: float  # the largest eigenvalue of the ranks' matrix of inner products


def share_of(rows: Floats) -> Share:
    """Look at all ranks' coordinates, float32 (P, m)."""
    with np.errstate(invalid="ignore", over="ignore"):
        mean, size = rows.mean(axis=0, dtype=np.float64), np.abs(rows).mean(axis=0, dtype=np.float64)
    x = np.where(np.isfinite(mean), rows, 0.0).astype(np.float64)
    squares = np.square(x).mean(axis=0)
    deviation = np.sqrt(np.maximum(0.0, squares - np.square(x.mean(axis=0))))
    inner = x @ x.T if len(x) <= x.shape[1] else x.T @ x
    largest = float(np.linalg.eigvalsh(inner)[-1]) if inner.size else 0.0
    return Share(mean, size.astype(np.float32), deviation.astype(np.float32), float(squares.sum() * len(rows)), largest)


def wrong_means(result: Floats, share: Share, *, P: int, truth: Standard) -> int:
    """Count the coordinates of a mean, float32 (m,), that rounding does not explain; all, if it is so of all together.

    Where a rank's is infinite, or no number, so must the mean be. Where the sum may be beyond the largest number of the
    arithmetic, the mean may be infinite.

    Whatever the order of the ranks' sum, and whatever a method divides by P when: a sum over any k ranks has a square,
    over all coordinates, of at most k times the largest eigenvalue.
    """
    bound = (P + 2) * (truth.roundoff * share.size + truth.underflow) + TINY
    finite = np.isfinite(share.mean)
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(result - share.mean)
        overflown = ~np.isfinite(result) & (P * share.size > truth.largest)
    near = (error <= bound) | overflown  # not `>`: a NaN that should not be counts
    same = (result == share.mean) | (np.isnan(result) & np.isnan(share.mean))
    wrong = int(np.count_nonzero(~np.where(finite, near, same)))
    known = finite & np.isfinite(error)
    expected = (2 * share.squares + (P * (P + 1) / 2 - 1) * share.largest) / P**2
    # Where ranks are so alike that their sums round the same way each time, errors add up instead of their squares.
    alike = known & (share.deviation <= P * truth.roundoff * np.abs(share.mean))
    expected += float(np.sum(np.square((P + 5) / 2 * share.size[alike].astype(np.float64))))
    near_0 = np.count_nonzero(known) * np.square(P * truth.underflow + TINY)
    limit = max(TIMES, P / 5) * ((KAPPA * truth.roundoff) ** 2 * expected + near_0)
    limit *= 1 + TIMES / np.sqrt(max(1, len(result)))  # the mean of few squares may be far from what is expected
    return len(result) if np.sum(np.square(error[known])) > limit else wrong


class Mean:
    """The mean of all ranks' vectors on this rank's share of the coordinates. Collective.

    The vector is looked at piece by piece; 1 / P of each piece is this rank's.
    """

    def __init__(self, comm: Comm, x: Floats) -> None:
        self.comm, P, self.n = comm, comm.size, len(x)
        self.shares: list[Share] = []
        # One piece each, for the temporary arrays between them would leave holes.
        own = sum(bounds.stop - bounds.start for bounds in self.bounds())
        means, sizes, deviations, end = np.empty(own), np.empty(own, np.float32), np.empty(own, np.float32), 0
        patience.quiet_barrier(comm)
        for piece in self._pieces():
            bounds = self._bounds(piece)
            counts, mine = np.diff(bounds), bounds[comm.rank + 1] - bounds[comm.rank]
            received = np.empty((P, mine), np.float32)
            comm.Alltoallv([x[piece], counts], [received, np.full(P, mine)])
            share, kept, end = share_of(received), slice(end, end + mine), end + mine
            means[kept], sizes[kept], deviations[kept] = share[:3]
            self.shares.append(share._replace(mean=means[kept], size=sizes[kept], deviation=deviations[kept]))

    def _pieces(self) -> Iterator[slice]:
        size = PIECE * max(1, self.comm.size // 64)
        return (slice(start, min(start + size, self.n)) for start in range(0, self.n, size))

    def _bounds(self, piece: slice) -> list[int]:
        """Divide a piece among the ranks."""
        length, P = piece.stop - piece.start, self.comm.size
        return [piece.start + rank * length // P for rank in range(P + 1)]

    def bounds(self) -> list[slice]:
        """Return which coordinates the shares are of."""
        return [slice(*self._bounds(piece)[self.comm.rank :][:2]) for piece in self._pieces()]

    def wrong(self, result: Floats, truth: Standard) -> int:
        """Count the wrong coordinates of this rank's share: see `wrong_means`."""
        return sum(
            wrong_means(result[bounds], share, P=self.comm.size, truth=truth)
            for bounds, share in zip(self.bounds(), self.shares, strict=True)
        )
