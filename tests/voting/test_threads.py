"""The laws of the exchanges at any P, on ranks that are threads of this process.

What is left to mpirun (test_exchange) is that each MPI's collectives do what the carrier's do.
"""

import itertools
import threading

import ballots as voters
import numpy as np
import pytest
import reference
from ballots import SEED, SIZES, STEP, W
from launch import skip_if_quick

from mpisign.coding import bits
from mpisign.coding.sizes import BLOCK
from mpisign.coding.ties import TIES
from mpisign.network import traffic
from mpisign.voting.exchange import EXCHANGES, plan_over
from mpisign.voting.threads import run_threads

RANKS = [1, 2, 3, 4, 5, 7, 8, 16, 33, 64]


def widths(P):
    return sorted({0, 1, P - 1, P, P + 1, BLOCK, BLOCK + 1, 3 * BLOCK + 1})


def node_layouts(P):
    """Return node numbers of each rank: one node, each rank its own, threes, and ranks dealt round to three nodes."""
    layouts = ([0] * P, list(range(P)), [rank // 3 for rank in range(P)], [rank % 3 for rank in range(P)])
    return [list(layout) for layout in dict.fromkeys(map(tuple, layouts))]


def ballots(P, W, seed=0):
    return np.random.default_rng([seed, P, W]).integers(0, 2**64, (P, W), np.uint64)


def take_votes(carrier, name, rule, every):
    """Vote on each of `every`, (P, W); return the results, the words afterwards and what was sent and received."""
    outcome = []
    for words in every:
        plan = plan_over(carrier, words.shape[1], exchange=name, tie=rule, seed=SEED)
        plan.words[:] = words[carrier.rank]
        voted = plan.vote(STEP).copy()
        outcome.append((voted, plan.words.copy(), plan.moved))
        plan.close()
    return outcome


@pytest.mark.parametrize("P", RANKS)
@pytest.mark.parametrize("rule", TIES)
@pytest.mark.parametrize("name", EXCHANGES)
def test_every_vote_is_exact_keeps_its_input_and_sends_what_is_booked(name, rule, P):
    if P > 8:
        skip_if_quick()
    every = [ballots(P, W) for W in widths(P)]
    truths = [reference.majority(words, rule, SEED, STEP) for words in every]
    for nodes in node_layouts(P) if name == "hierarchical" else [[0] * P]:
        outcomes = run_threads(P, lambda carrier: take_votes(carrier, name, rule, every), nodes=nodes)
        for i, (words, truth) in enumerate(zip(every, truths, strict=True)):
            booked = traffic.vote(name, words.shape[1], tie=rule, nodes=nodes)
            for rank in range(P):
                voted, kept, book = outcomes[rank][i]
                assert np.array_equal(voted, truth)
                assert np.array_equal(kept, words[rank])
                assert book == tuple(booked[rank])


def votes_of_those_present(carrier, name, rule, abstain, sizes):
    """Return the votes and the bytes of each."""
    plan = plan_over(carrier, W, exchange=name, tie=rule, seed=SEED, sizes=sizes, abstain=abstain)
    outcomes = [(voted, plan.moved) for voted in voters.take_votes(plan, carrier.size, carrier.rank)]
    plan.close()
    return outcomes


@pytest.mark.parametrize("P", RANKS)
@pytest.mark.parametrize("rule", TIES)
@pytest.mark.parametrize("name", EXCHANGES)
@pytest.mark.parametrize(("abstain", "sizes"), [(False, SIZES), (True, ()), (True, SIZES)])
def test_those_who_vote_decide(abstain, sizes, name, rule, P):
    if P > 8:
        skip_if_quick()
    truths = voters.true_votes(P, rule, abstain=abstain, sizes=sizes)
    for nodes in node_layouts(P) if name == "hierarchical" else [[0] * P]:
        booked = traffic.vote(name, W, tie=rule, nodes=nodes, parts=len(sizes), abstain=abstain)
        every = run_threads(P, lambda carrier: votes_of_those_present(carrier, name, rule, abstain, sizes), nodes=nodes)
        for rank, outcomes in enumerate(every):
            for (voted, book), truth in zip(outcomes, truths, strict=True):
                assert np.array_equal(voted, truth)
                assert book == tuple(booked[rank])


@pytest.mark.parametrize("P", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("name", EXCHANGES)
def test_what_nobody_votes_on_is_0_under_every_rule(name, P):
    """By another way than the reference: adding up -1, 0 and 1, in vectors of a part or two."""
    rng = np.random.default_rng(P)
    for n, rule in itertools.product((1, 63, 64, 65, 64 * P + 1), TIES):
        sizes = (n // 2, n - n // 2)
        cast = rng.choice([-1, 0, 1], (P, n), p=[0.2, 0.6, 0.2])
        absent = rng.random((P, 2)) < 0.3
        votes = cast * ~np.repeat(absent, sizes, axis=1)

        def vote(carrier, rule=rule, sizes=sizes, cast=cast, absent=absent, votes=votes):
            words, gone = reference.pack(votes[carrier.rank]), absent[carrier.rank]
            plan = plan_over(carrier, len(words), exchange=name, tie=rule, seed=SEED, sizes=sizes, abstain=True)
            plan.words[:], plan.abstains[:] = words, reference.pack(-(cast[carrier.rank] == 0).astype(int))
            plan.roll.write(turn=0, agreed=0, faults=0, absent=gone)
            return bits.unpack(plan.vote(STEP), sum(sizes))

        tally, tied = votes.sum(axis=0), {"positive": np.ones(n), "zero": np.zeros(n)}.get(rule)
        if tied is None:
            tied = 1 - 2 * reference.bits_of(reference.coins(SEED, STEP, len(reference.pack(cast[0]))))[:n]
        truth = np.where(tally == 0, tied, np.sign(tally)) * votes.any(axis=0)
        for voted in run_threads(P, vote, nodes=[rank // 2 for rank in range(P)]):
            assert np.array_equal(voted, truth)


def test_who_is_absent_everywhere_leaves_the_vote_of_the_others():
    """By another way than the reference: the same vote of fewer ranks."""
    words, _ = voters.ballots(5)
    others = [0, 1, 3, 4]

    def vote(carrier, every, absent=()):
        plan = plan_over(carrier, W, exchange="alltoall", tie="random", seed=SEED, sizes=SIZES)
        plan.words[:] = 0 if carrier.rank in absent else every[carrier.rank]
        plan.roll.write(turn=0, agreed=0, faults=0, absent=np.full(len(SIZES), carrier.rank in absent))
        return plan.vote(STEP).copy()

    fewer = run_threads(4, lambda carrier: vote(carrier, words[others]))[0]
    for voted in run_threads(5, lambda carrier: vote(carrier, words, {2})):
        assert np.array_equal(voted, fewer)


@pytest.mark.parametrize("name", EXCHANGES)
def test_a_turn_that_differs_is_the_same_fault_on_all_and_leaves_none_waiting(name):
    faults = []

    def vote(carrier):
        plan = plan_over(carrier, 2, exchange=name, tie="positive", seed=0, sizes=(100, 28))
        plan.roll.write(turn=7 + (carrier.rank == 2), agreed=0, faults=0, absent=np.zeros(2, bool))
        try:
            plan.vote()
        except ValueError as fault:
            faults.append(str(fault))
        plan.roll.write(turn=9, agreed=0, faults=0, absent=np.zeros(2, bool))
        plan.vote()

    run_threads(4, vote, nodes=[0, 0, 1, 1])
    told = "ranks vote on different buckets or steps: turn 7 on rank 0, 8 on rank 2; all must take the same steps"
    assert faults == [told] * 4


@pytest.mark.parametrize("P", [2, 3, 8])
@pytest.mark.parametrize("rule", TIES)
@pytest.mark.parametrize("name", EXCHANGES)
def test_a_vote_does_not_depend_on_who_has_which_words(name, rule, P):
    words = ballots(P, 2 * BLOCK + 5)
    permuted = np.random.default_rng(P).permutation(words)
    nodes = [rank // 2 for rank in range(P)]
    for outcome in run_threads(P, lambda carrier: take_votes(carrier, name, rule, [words, permuted]), nodes=nodes):
        assert np.array_equal(outcome[0][0], outcome[1][0])


@pytest.mark.parametrize("P", [1, 4, 7])
@pytest.mark.parametrize("rule", TIES)
@pytest.mark.parametrize("name", EXCHANGES)
def test_a_plan_votes_again(name, rule, P):
    steps = [ballots(P, 300, step) for step in range(3)]
    steps.append(np.repeat(ballots(P // 2 + 1, 300), 2, axis=0)[:P])  # many ties after few

    def vote(carrier):
        plan = plan_over(carrier, 300, exchange=name, tie=rule, seed=SEED)
        voted = []
        for step, words in enumerate(steps):
            plan.words[:] = words[carrier.rank]
            voted.append(plan.vote(step).copy())
        plan.close()
        return voted

    for voted in run_threads(P, vote, nodes=[rank // 2 for rank in range(P)]):
        for step, words in enumerate(steps):
            assert np.array_equal(voted[step], reference.majority(words, rule, SEED, step))


@pytest.mark.parametrize("P", [2, 5])
def test_the_coins_of_a_tie_are_the_same_whoever_throws_them(P):
    """All exchanges give the same bits."""
    words = ballots(P, 1000)
    results = [
        outcome[0][0].tobytes()
        for name in EXCHANGES
        for outcome in run_threads(P, lambda carrier, name=name: take_votes(carrier, name, "random", [words]))
    ]
    assert len(set(results)) == 1


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"exchange": "ring"}, r"exchange: unknown name 'ring'.*\(on rank 2\)"),
        ({"tie": "heads"}, r"tie: unknown rule 'heads'.*\(on rank 2\)"),
        ({"W": 6}, "ranks ask for different votes"),
        ({"seed": 1}, "ranks ask for different votes"),
        ({"sizes": (1, 319)}, "ranks ask for different votes"),
        ({"abstain": True}, "ranks ask for different votes"),
        ({"sizes": (3, 200)}, r"sizes: 203 coordinates do not fill 5 words \(on rank 2\)"),
    ],
)
def test_a_fault_of_one_rank_is_the_same_on_all(asked, named):
    usual = {"W": 5, "exchange": "alltoall", "tie": "positive", "seed": 0}
    faults = []

    def refused(carrier):
        try:
            plan_over(carrier, **usual | (asked if carrier.rank == 2 else {}))
        except ValueError as fault:
            faults.append(str(fault))

    run_threads(4, refused)
    assert len(faults) == 4
    assert len(set(faults)) == 1
    with pytest.raises(ValueError, match=named):
        raise ValueError(faults[0])


def test_a_carrier_without_counters_is_told_so():
    class Plain:
        size, rank = 1, 0

        def allgather(self, thing):
            return [thing]

    with pytest.raises(ValueError, match="exchange: 'reduce' sums counters"):
        plan_over(Plain(), 5, exchange="reduce", tie="positive", seed=0)


def test_threads_return_what_they_found_by_rank():
    assert run_threads(5, lambda carrier: (carrier.rank, carrier.size)) == [(rank, 5) for rank in range(5)]


@pytest.mark.parametrize("at", ["before", "between", "inside a node"])
def test_a_thread_that_fails_leaves_none_waiting(at):
    before = threading.active_count()

    def failing(carrier):
        node = carrier.by_node()[0] if at == "inside a node" else carrier
        if at == "between":
            carrier.allgather(None)
        if carrier.rank == 1:
            raise ArithmeticError("rank 1 fails")
        node.allgather(None)
        carrier.allgather(None)

    with pytest.raises(ArithmeticError, match="rank 1 fails"):
        run_threads(4, failing, nodes=[0, 0, 1, 1])
    assert threading.active_count() == before
