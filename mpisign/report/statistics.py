"""Medians, their nonparametric intervals, and verdicts.

No distribution is assumed: times have long right tails (Hoefler & Belli, "Scientific benchmarking of parallel
computing systems", SC'15, rules 5 to 8).
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

CONFIDENCE = 0.95
# The share of runs in which a difference is found that is said to be. It is told as "most": the times of a real run
# are not what it is worked out for, and fewer find it (last columns of benchmarks/speed/null.py).
FOUND = 0.9


class Median(NamedTuple):
    """A median and the interval that covers the true one with at least the confidence asked for."""

    median: float
    low: float
    high: float


def median_interval(samples: ArrayLike, together: int = 1) -> Median:
    """Return the median of the samples and its interval between two order statistics.

    The number of samples below the true median is binomial(n, 1/2); the interval leaves out as many samples at each
    end as that allows (Hoefler & Belli, section 3.1.3). So many intervals `together` all cover their medians with
    CONFIDENCE, whatever they have to do with each other (Bonferroni). With fewer than `enough` samples the interval is
    their range. Without samples all three are NaN.
    """
    ordered = np.sort(np.asarray(samples, float))
    n = len(ordered)
    if not n:
        return Median(math.nan, math.nan, math.nan)
    cut = left_out(n, together)
    return Median(float(np.median(ordered)), float(ordered[cut]), float(ordered[n - 1 - cut]))


@functools.cache
def left_out(n: int, together: int) -> int:
    """Return how many of n samples an interval leaves out at each end.

    In whole numbers, as 2^n is soon too large for a float: in `tail` of 2^n cases at most k samples lie below the
    median. k comes down from the middle, which is about sqrt(n) steps away.
    """
    allowed = math.floor(Fraction((1 - CONFIDENCE) / 2) / together * 2**n)
    k = (n - 1) // 2
    cases = math.comb(n, k)
    tail = 2 ** (n - 1) if n % 2 else (2**n - math.comb(n, n // 2)) // 2
    while k > 0 and tail > allowed:
        tail -= cases
        cases = cases * k // (n - k + 1)
        k -= 1
    return k


@functools.cache
def enough(together: int = 1) -> int:
    """Return the fewest samples that have an interval: the range of fewer covers the median less often than it says."""
    n = 1
    while 2.0 ** (1 - n) > (1 - CONFIDENCE) / together:
        n += 1
    return n


def verdict(speedup: Median, samples: int, *, together: int = 1) -> str:
    """Say what the interval of a speed-up allows to say: faster, slower or indistinguishable.

    With the interval of `median_interval` of paired ratios this is the sign test: it leaves out 1 where so few pairs
    are on one side of it. A bootstrap of the same pairs has narrower intervals, but calls different what is alike more
    often than it says.
    """
    if samples < enough(together):
        return "too few samples"
    if speedup.low > 1:
        return "faster"
    return "slower" if speedup.high < 1 else "indistinguishable"


def smallest_found(speedup: Median, together: int = 1) -> float:
    """Return the difference, as a share, that FOUND of such runs would tell from none, by the width of an interval.

    A median of many samples is about normal. Its interval reaches so many standard errors to each side; a difference
    is found in FOUND of the runs if it is larger than that by as many more as a normal variable stays below so often.
    """
    normal = NormalDist()
    reach, more = normal.inv_cdf(1 - (1 - CONFIDENCE) / (2 * together)), normal.inv_cdf(FOUND)
    return math.expm1(math.log(speedup.high / speedup.low) / 2 * (1 + more / reach))
