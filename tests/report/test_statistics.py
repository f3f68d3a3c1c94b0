import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mpisign.report.statistics import ENOUGH, Median, median_interval, median_ratio, verdict


@given(st.lists(st.floats(0.1, 1e3), min_size=ENOUGH, max_size=200, unique=True))
def test_the_interval_is_the_narrowest_pair_of_order_statistics_that_covers(samples):
    median, low, high = median_interval(samples)
    ordered, n = sorted(samples), len(samples)
    assert median == np.median(samples)
    cut = ordered.index(low)
    assert high == ordered[n - 1 - cut]
    covered = 1 - 2 * stats.binom.cdf(cut, n, 0.5)
    assert covered >= 0.95
    assert 1 - 2 * stats.binom.cdf(cut + 1, n, 0.5) < 0.95 or cut + 1 > (n - 1) // 2


@pytest.mark.parametrize("size", [6, 7, 8, 101, 5000])
def test_it_agrees_with_scipy(size):
    samples = np.random.default_rng(0).exponential(size=size)
    theirs = stats.quantile_test(samples, p=0.5).confidence_interval(0.95)
    ours = median_interval(samples)
    assert ours.low == theirs.low
    assert ours.high == theirs.high


def test_it_covers_at_the_nominal_rate():
    rng = np.random.default_rng(1)
    covered = sum(
        low <= math.log(2) <= high for _, low, high in (median_interval(rng.exponential(size=20)) for _ in range(2000))
    )
    assert 0.95 <= covered / 2000 < 0.99


def test_few_samples_give_their_range_and_none_gives_nan():
    assert median_interval([3.0, 1.0, 2.0]) == Median(2, 1, 3)
    assert median_interval([5.0]) == Median(5, 5, 5)
    assert all(map(math.isnan, median_interval([])))


@pytest.mark.parametrize(
    ("interval", "said"), [((1.1, 1.2), "faster"), ((0.8, 0.9), "slower"), ((0.9, 1.1), "indistinguishable")]
)
def test_verdict(interval, said):
    assert verdict(Median(1.0, *interval), ENOUGH) == said
    assert verdict(Median(1.0, *interval), ENOUGH - 1) == "too few samples"


@given(st.lists(st.floats(0.5, 2).filter(lambda ratio: ratio != 1), min_size=ENOUGH, max_size=60))
def test_the_verdict_on_paired_ratios_is_the_sign_test(ratios):
    above = sum(ratio > 1 for ratio in ratios)
    rejected = stats.binomtest(above, len(ratios)).pvalue <= 0.05
    said = {True: "faster" if above > len(ratios) / 2 else "slower", False: "indistinguishable"}[rejected]
    assert verdict(median_interval(ratios), len(ratios)) == said


def test_median_ratio_of_a_slow_down():
    rng = np.random.default_rng(2)
    old, new = rng.normal(1, 0.01, 50), rng.normal(1.05, 0.01, 50)
    ratio = median_ratio(old, new)
    assert ratio.low < 1 / 1.05 < ratio.high < 1


def test_memory_grows_with_the_samples_and_not_with_the_rounds():
    series = np.random.default_rng(3).normal(1, 0.01, 5000)
    tracemalloc.start()
    median_ratio(series, series)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 * series.nbytes  # all rounds at once take 2000 times as much
