"""What the accounts of a state say, and whom the watch names: of shares that are made up, and of none by chance."""

import itertools

import numpy as np
import pytest

from mpisign.coding import coding
from mpisign.voting.ledger import Ledger, Watch, _median_of_others, chance, heard, told

STEPS, COORDINATES = 100, 1_000_000


def shares(P, *, honest=0.1, odd=(), other=-0.05, noise=0.002, seed=0):
    """Shares of agreement, (STEPS, P), above those of chance: those of the ranks `odd` are about `other`."""
    mean = np.where(np.isin(np.arange(P), odd), other, honest)
    return chance(P) + mean + noise * np.random.default_rng(seed).standard_normal((STEPS, P))


def named(P, **made):
    watch = Watch(P)
    for row in shares(P, **made):
        watch.see(row.tolist(), COORDINATES)
    return watch.apart


@pytest.mark.parametrize("P", [3, 4, 7, 16])
@pytest.mark.parametrize("other", [-0.05, 0.0])  # an inverter's, and that of coins
def test_a_rank_that_agrees_far_less_is_named(P, other):
    assert named(P, odd=[P - 1], other=other) == [P - 1]


@pytest.mark.parametrize("P", range(1, 9))
def test_chance_is_the_agreement_of_coins_with_their_majority(P):
    throws = np.array(list(itertools.product([-1, 1], repeat=P)))
    majority = np.where(throws.sum(axis=1) < 0, -1, 1)
    assert chance(P) == np.mean(throws == majority[:, None])


@pytest.mark.parametrize("noise", [0.0, 0.001, 0.05])
@pytest.mark.parametrize("P", [3, 4, 7, 16])
def test_identical_ranks_name_nobody(P, noise):
    assert all(named(P, noise=noise, seed=seed) == [] for seed in range(20))


def test_a_rank_that_agrees_a_little_less_is_not_named():
    assert named(8, odd=[2], other=0.08) == []


@pytest.mark.parametrize("P", [2, 3, 4, 9])
def test_the_median_of_the_others_is_without_ones_own(P):
    known = np.random.default_rng(P).integers(0, 4, P) / 4  # some are alike
    assert _median_of_others(known).tolist() == [np.median(np.delete(known, rank)) for rank in range(P)]


def test_two_of_seven_are_both_named():
    assert named(7, odd=[1, 4]) == [1, 4]


def test_of_two_ranks_nobody_can_say_which_is_odd():
    assert named(2, odd=[1]) == []


def test_a_step_of_which_a_share_is_not_known_is_left_out():
    watch = Watch(3)
    for row in shares(3, odd=[0]):
        watch.see([None, *row.tolist()[1:]], COORDINATES)
    assert watch.steps == 0


def test_of_few_coordinates_nobody_is_named():
    """A momentum may keep the same few apart in every step."""
    watch = Watch(3)
    for row in shares(3, odd=[0]):
        watch.see(row.tolist(), 161)
    assert watch.apart == []


def test_a_rank_that_is_healed_is_named_no_longer():
    watch = Watch(4)
    for row in shares(4, odd=[2]):
        watch.see(row.tolist(), COORDINATES)
    assert watch.apart == [2]
    for _ in range(10):
        for row in shares(4):
            watch.see(row.tolist(), COORDINATES)
    assert watch.apart == []


@pytest.mark.parametrize("share", [None, 0.0, 0.25, 0.5003, 1.0])
def test_a_share_is_heard_as_it_was_told(share):
    back = heard(told(share))
    assert back is None if share is None else back == pytest.approx(share, abs=1e-9)


def counted(words, voted, n, absent):
    ledger = Ledger(1, 0)
    tensors = [coding.tensor_of(np.array(part, np.uint64)) for part in (words, voted)]
    tie = "zero" if np.ndim(voted) == 2 else "positive"
    for moved in ((10, 20), (1, 2)):  # a step of two buckets
        ledger.count(*tensors, n=n, absent=np.array(absent), tie=tie, moved=moved)
    ledger.end_step(0, 0.0)
    return ledger.last()


def test_agreement_and_ties_are_counted():
    step = counted([0b1101, 0], [[0b1000, 0], [0b0101, 1]], 70, [False])
    assert step.agreement == pytest.approx(1 - 2 / 70)
    assert step.tied == pytest.approx(3 / 70)
    assert (step.sent, step.received) == (11, 22)


def test_a_bucket_that_a_rank_has_no_part_in_does_not_count_for_its_agreement():
    step = counted([0], [0b11], 64, [True, False])
    assert step.agreement is None
    assert step.absent == 2


def test_what_is_not_finite_is_told_once_and_names_the_ranks():
    ledger = Ledger(3, 1)
    assert ledger.nonfinite(np.array([0, 0, 0]), 0) is None
    line = ledger.nonfinite(np.array([0, 2, 1]), 4)
    assert "bucket 4: 3 values" in line
    assert "on ranks 1, 2" in line
    ledger.nonfinite(np.array([0, 2, 0]), 4)
    assert len(ledger.news) == 1
    ledger.end_step(0, 0.0)
    assert ledger.last().nonfinite == 4


def test_seconds_are_kept_a_step_and_handed_on():
    from mpisign.ranks.clock import Spans

    outer = Spans()
    ledger = Ledger(1, 0, outer)
    for name in ("pack", "all-to-all", "vote", "all-gather", "unpack"):
        ledger.spans.add(name, 0.0, 1.0)
    ledger.end_step(3, 0.5)
    step = ledger.last()
    assert step.seconds == {"pack": 1.0, "vote": 1.0, "unpack": 1.0, "exchange": 2.0, "exposed": 0.5}
    assert step.step == 3
    assert outer.take() == {"pack": 1.0, "all-to-all": 1.0, "vote": 1.0, "all-gather": 1.0, "unpack": 1.0}
