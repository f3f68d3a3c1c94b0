"""Medians, their nonparametric intervals, and verdicts.

No distribution is assumed: times have long right tails (Hoefler & Belli, "Scientific benchmarking of parallel
computing systems", SC'15, rules 5 to 8).
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
# Fewer samples than this have no 95 % interval of the median: even their whole range covers it less often.
ENOUGH = 6


class Median(NamedTuple):
    """A median and the interval that covers the true one with at least the confidence asked for."""

    median: float
    low: float
    high: float


def median_interval(samples: ArrayLike, confidence: float = CONFIDENCE) -> Median:
    """Return the median of the samples and its interval between two order statistics.

    The number of samples below the true median is binomial(n, 1/2); the interval leaves out as many samples at each
    end as that allows (Hoefler & Belli, section 3.1.3). With fewer than ENOUGH samples it is their range. Without
    samples all three are NaN.
    """
    ordered = np.sort(np.asarray(samples, float))
    n = len(ordered)
    if not n:
        return Median(math.nan, math.nan, math.nan)
    # In whole numbers, as 2^n is soon too large for a float: of 2^n cases, `below` have at most `cut` samples below.
    cut, below, allowed = -1, 0, Fraction((1 - confidence) / 2) * 2**n
    while cut < (n - 1) // 2 and below + math.comb(n, cut + 1) <= allowed:
        cut += 1
        below += math.comb(n, cut)
    cut = max(cut, 0)
    return Median(float(np.median(ordered)), float(ordered[cut]), float(ordered[n - 1 - cut]))


def verdict(speedup: Median, samples: int) -> str:
    """Say what the interval of a speed-up allows to say: faster, slower or indistinguishable.

    With the interval of `median_interval` of paired ratios this is the sign test at 1 - CONFIDENCE: it leaves out 1
    where so few pairs are on one side of it. A bootstrap of the same pairs has narrower intervals, but calls
    different what is alike more often than it says (`benchmarks/speed/null.py`).
    """
    if samples < ENOUGH:
        return "too few samples"
    if speedup.low > 1:
        return "faster"
    return "slower" if speedup.high < 1 else "indistinguishable"


def median_ratio(old: ArrayLike, new: ArrayLike, *, rounds: int = 2000, seed: int = 0) -> Median:
    """Return median(old) / median(new) of two unpaired series with its percentile-bootstrap interval."""
    rng = np.random.default_rng(seed)
    olds, news = (_resampled_medians(np.asarray(series, float), rounds, rng) for series in (old, new))
    low, high = np.quantile(olds / news, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Median(float(np.median(np.asarray(old)) / np.median(np.asarray(new))), float(low), float(high))


def _resampled_medians(series: NDArray[np.float64], rounds: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the medians of so many bootstrap samples, drawn in blocks: memory grows with the series alone."""
    block = max(1, 2**18 // max(1, len(series)))
    sizes = [min(block, rounds - done) for done in range(0, rounds, block)]
    return np.concatenate([np.median(rng.choice(series, (size, len(series))), axis=1) for size in sizes])
