import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mpisign.report.statistics import CONFIDENCE, Median, enough, median_interval, smallest_found, verdict

ENOUGH = enough()


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


def left_out(n, together):
    """How many of n samples an interval leaves out at each end, added up from the end: slow, and plainly right."""
    allowed, below, cut = Fraction((1 - CONFIDENCE) / 2) / together * 2**n, 0, -1
    while cut < (n - 1) // 2 and below + math.comb(n, cut + 1) <= allowed:
        cut += 1
        below += math.comb(n, cut)
    return max(cut, 0)


@pytest.mark.parametrize("together", [1, 7, 44, 700])
def test_the_quick_count_is_the_slow_one(together):
    for n in [*range(1, 200), 999, 1000]:
        assert median_interval(range(n), together).low == left_out(n, together)


def test_enough_samples_are_those_whose_range_covers():
    for together in range(1, 100):
        assert 2.0 ** (1 - enough(together)) <= 0.05 / together < 2.0 ** (2 - enough(together))
        assert verdict(Median(2, 1.5, 3), enough(together), together=together) == "faster"
        assert verdict(Median(2, 1.5, 3), enough(together) - 1, together=together) == "too few samples"


def test_many_intervals_together_all_cover_at_the_nominal_rate():
    rng = np.random.default_rng(4)
    tables = rng.lognormal(size=(500, 11, 40))
    together, alone = (
        np.mean([all(low <= 1 <= high for _, low, high in (median_interval(row, held) for row in table))
                 for table in tables]) for held in (11, 1)
    )  # fmt: skip
    assert together > 0.95
    assert alone < 0.75


@pytest.mark.parametrize("together", [1, 11, 44])
def test_the_smallest_difference_is_found_in_nine_of_ten_runs(together):
    rng = np.random.default_rng(5)
    runs = rng.lognormal(sigma=0.2, size=(1000, 200))
    told = np.median([smallest_found(median_interval(run, together), together) for run in runs])
    found = np.mean([verdict(median_interval(run * (1 + told), together), 200, together=together) == "faster"
                     for run in runs])  # fmt: skip
    assert 0.86 < found < 0.95
