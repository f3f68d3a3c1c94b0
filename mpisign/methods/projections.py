"""What a result of PowerSGD is held to, which is known only by what it leaves over.

A worker adds to its gradient what it has kept back, and keeps back what the result leaves of the two. So the result and
the mean of what is kept back make up the mean of what was put in. The result of a matrix is a projection of that mean
onto few directions, to which the rest is orthogonal. And what is not compressed is an exact mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .means import TINY, Mean
from .method import Standard

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..coding.bits import Floats
    from ..ranks.launch import Comm

EXACT = Standard("mean", 2**-24)
NEARLY = 1e-3  # of what is orthogonal, or 0; a projection onto directions that are nearly parallel is not looked at
ROUNDING = 1e-5  # of what was put in: where a matrix has few dimensions, nothing else is left of it


class Kept(NamedTuple):
    """What a rank has kept back of a bucket before and after an exchange, float32 (n,); None: nothing yet."""

    before: Floats | None
    after: Floats | None
    shapes: list[tuple[int, ...]]  # of the parameters


def is_compressed(shape: Sequence[int], rank: int) -> bool:
    """Tell whether PowerSGD sends a parameter as two factors: a matrix, where these are less than half of it."""
    rows, columns = (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (math.prod(shape), 1)
    return 2 * (rows + columns) * min(rows, columns, rank) < rows * columns


def wrong_projections(comm: Comm, gradient: Floats, kept: Kept, *, result: Floats, rank: int) -> int:
    """Count the coordinates of a bucket that are wrong: of this rank's share, and all of a matrix. Collective."""
    put_in = gradient if kept.before is None else gradient + kept.before
    means = Mean(comm, put_in)
    after = np.zeros_like(result) if kept.after is None else kept.after
    if comm.allreduce(kept.after is None):
        return means.wrong(result, EXACT)  # the first steps compress nothing
    rests, wrong = Mean(comm, after), 0
    exact = np.repeat([not is_compressed(shape, rank) for shape in kept.shapes], [*map(math.prod, kept.shapes)])
    for bounds, mean, rest in zip(means.bounds(), means.shares, rests.shares, strict=True):
        made, expected = result[bounds], mean.mean - rest.mean
        with np.errstate(invalid="ignore"):
            right = np.abs(made - expected) <= 4 * EXACT.roundoff * (mean.size + rest.size) + TINY
            far = np.abs(made - mean.mean) > (comm.size + 2) * EXACT.roundoff * mean.size + TINY
        right |= np.isnan(expected) & np.isnan(made)
        wrong += int(np.count_nonzero(~right | (far & exact[bounds])))
    return wrong + _not_orthogonal(comm, result, after, shapes=kept.shapes, rank=rank)


def _not_orthogonal(
    comm: Comm, result: Floats, after: Floats, *, shapes: Sequence[tuple[int, ...]], rank: int
) -> int:  # fmt: skip
    """Count the coordinates of matrices that are no projection: tried with a random vector of each. Collective."""
    coins, end, wrong = np.random.default_rng(0), 0, 0
    for shape in shapes:
        begin, end = end, end + math.prod(shape)
        if not is_compressed(shape, rank):
            continue
        made, rest = (part[begin:end].reshape(shape[0], -1).astype(np.float64) for part in (result, after))
        vectors = coins.standard_normal((made.shape[1], rank))
        mine = rest @ vectors[:, 0]
        left: NDArray[np.float64] = comm.allreduce(mine) / comm.size
        typical = comm.allreduce(float(np.linalg.norm(mine))) / comm.size
        if not np.isfinite(left).all() or not np.isfinite(made).all():
            continue
        size, of_result = float(np.linalg.norm(left)), float(np.linalg.norm(made))
        if of_result == 0:
            wrong += made.size if size > NEARLY * typical else 0
            continue
        directions = np.linalg.svd(made @ vectors, compute_uv=False)
        along = float(np.linalg.norm(left @ made)) / of_result
        if along > NEARLY * size + ROUNDING * (of_result + typical) and directions[-1] > NEARLY * directions[0]:
            wrong += made.size
    return wrong
