"""What the experiments in benchmarks/paper measure with, and how they and the kernels' table conclude."""

from functools import partial

import numpy as np
import pytest
import torch

import mpisign
from benchmarks.paper import convergence, rules, tokens, tuning, zeros
from benchmarks.speed import kernels as speed
from mpisign.coding.kernels import torch as kernels
from mpisign.report.statistics import Median


def coins():
    return np.random.default_rng(0)


@pytest.mark.parametrize("tie", ["positive", "random"])
def test_where_nobody_votes_the_majority_is_nothing_and_else_a_sign(tie):
    votes = torch.tensor([[[0.0, 1, -1, 1, 0], [0.0, -1, -1, 0, 0], [0.0, 0, -1, 0, 1]]])
    found = zeros.majority(votes, tie, coins())[0]
    assert found[[0, 2, 3, 4]].tolist() == [0, -1, 1, 1]
    assert abs(found[1]) == 1


def test_a_zero_is_voted_for_as_the_rule_says():
    u = torch.zeros(2, 3, 1000)
    u[..., 0], u[..., 1] = 1e-30, -1e-30
    positive, random, abstain = (zeros.ballots(u, rule, coins()) for rule in ("positive", "random", "abstain"))
    assert (positive[..., 2:] == 1).all()
    assert (random.abs() == 1).all()
    assert abs(random[..., 2:].mean()) < 0.1
    assert (abstain[..., 2:] == 0).all()
    for votes in (positive, random, abstain):
        assert (votes[..., 0] == 1).all()
        assert (votes[..., 1] == -1).all()


@pytest.mark.parametrize(("rule", "share"), [("positive", 1.0), ("random", 0.0), ("abstain", 0.0)])
def test_how_far_the_rows_go_that_never_occur(rule, share, monkeypatch):
    """Always +1 they go as far as they can, by coins about the root of the steps, without votes nowhere."""
    monkeypatch.setattr(zeros, "STEPS", 20)
    method, seeds = partial(zeros.vote, zeros=rule, beta=0.0, tie="positive"), [0, 1]
    *_, (_, x, _, state) = tuning.train(tokens, method, rates=[0.01] * 2, seeds=seeds, P=3, B=4, steps=20)
    drift = zeros.drift(tokens, x, seeds, 0.01)
    assert (state["zeros"] / 20 > 0.5).all()
    if rule == "random":
        assert ((drift["never"] > 0.1) & (drift["never"] < 0.4)).all()
        assert (drift["one_way"] < 0.1).all()
    else:
        assert drift["never"].tolist() == pytest.approx([share] * 2, abs=1e-3)


@pytest.mark.parametrize(
    ("abstain", "random", "said"),
    [(0, 0, ("random", False)), (1, 0, ("abstain", True)), (0, -1, ("positive", False)), (0, 1, ("random", False))],
)
def test_the_default_by_the_rule(abstain, random, said):
    """Of how much better than the others they are in all cases: 1, equal 0, or -1."""
    merit = {"positive": 0, "random": random, "abstain": 2 * abstain}
    between = {}
    for case in zeros.CASES:
        for one in merit:
            for other in merit:
                lower = merit[other] - merit[one]
                between[case, one, other] = Median(lower, lower - 0.5, lower + 0.5)
    drifts = {"positive": 1.0, "random": 0.1, "abstain": 0.0}
    assert zeros.conclude(between, drifts)[:2] == said


@pytest.mark.parametrize(
    "rule", [mpisign.Signum(0.9), mpisign.SignSGD(), mpisign.Lion(0.9, 0.99)], ids=lambda r: r.name
)
def test_the_experiments_rules_sign_as_the_packages(rule):
    n, state, draws = 500, {"m": 0.0}, coins()
    momentum, moved = (torch.zeros(n) if rule.has_momentum else None for _ in range(2))
    words = torch.zeros(8, dtype=torch.int64)
    for _ in range(6):
        gradient = torch.from_numpy(draws.standard_normal(n, np.float32))
        change, _ = rules.vote(rule, gradient[None, None], 0.5, state)
        kernels.sign(gradient, words, rule, momentum, moved, zeros=None, faults=None, key=0)
        momentum, moved = moved, momentum
        signs = 1 - 2 * np.unpackbits(words.numpy().view(np.uint8), count=n, bitorder="little").astype(np.float32)
        assert np.array_equal(change[0], 0.5 * signs)


@pytest.mark.parametrize(
    ("rule", "deviation", "largest"),
    [(mpisign.Noisy(1), 1, 5), (mpisign.Stochastic(1), 3**-0.5, 1)],
    ids=lambda r: str(r),
)
def test_the_dithers_moments(rule, deviation, largest):
    drawn = rules.dither(rule, (2, 50_000), coins())
    assert drawn.dtype == torch.float32
    assert abs(drawn.mean()) < 0.02
    assert float(drawn.std()) == pytest.approx(deviation, rel=0.02)
    assert drawn.abs().max() < largest


def test_how_fussy_a_rate_is():
    line = {"grid": [1.0, 2**0.5, 2.0, 2 * 2**0.5, 4.0], "rate": 2.0, "tuning_losses": [3.0, 2.0, 1.0, 1.5, 2.5]}
    assert rules.fussy(line) == [3, 2.5]
    assert np.isnan(rules.fussy(line | {"rate": 4.0})[1])
    assert rules.fussy(line | {"grid": [0.5, 1.0, 2.0, 4.0, 8.0]}) == [2, 1.5]


def reached(step):
    """Return a line of two seeds that have the goal, the second a look later, at the looks 0, 2, 4, 8, 16, 32."""
    steps = np.array([0, 2, 4, 8, 16, 32])
    there = np.stack([steps >= step, steps >= 2 * step], 1)
    return {"steps": steps, "bytes": np.stack([10 * steps] * 2, 1), "accuracies": np.where(there, 0.95, 0.5),
            "losses": np.where(there, 0.1, 1.0)}  # fmt: skip


def test_when_the_goal_is_reached_is_known_from_one_look_to_the_next():
    assert convergence.reaching(reached(4)).tolist() == [[4, 8], [40, 80], [3, 5]]
    assert convergence.reaching(reached(32)).tolist() == [[32, np.inf], [320, np.inf], [17, np.inf]]


@pytest.mark.parametrize(
    ("one", "other", "counted", "times"),
    [(4, 8, "fewer in 6, more in 0", "0.50 to 0.50"), (8, 4, "fewer in 0, more in 6", "2.00 to 2.00"),
     (4, 4, "fewer in 0, more in 0", "1.00 to 1.00")],
)  # fmt: skip
def test_steps_are_compared_as_closely_as_the_looks_allow(one, other, counted, times):
    lines = {"one": convergence.numbers(reached(one)), "other": convergence.numbers(reached(other))}
    said = convergence.compare({(*cell, name): line for cell in convergence.CELLS for name, line in lines.items()},
                               "one", "other")  # fmt: skip
    assert f"{counted}. These steps are {times} times as many" in said
    assert one != other or "room for 0.67 to 1.50." in said


def test_a_goal_is_reached_or_missed_by_an_interval():
    assert [speed.reached(low, low + 0.1, 0.7) for low in (0.7, 0.65, 0.5)] == ["reached", "open", "short"]
