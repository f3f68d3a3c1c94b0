"""The laws of the exchanges at any P, on ranks that are threads of this process.

What is left to mpirun (test_exchange) is that each MPI's collectives do what the carrier's do.
"""

import threading

import ballots as voters
import numpy as np
import pytest
import reference
from ballots import SEED, SIZES, STEP, W
from launch import skip_if_quick

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


class CountingCarrier:
    """A carrier that books what its collectives deliver, by the rules at the head of network.traffic."""

    def __init__(self, carrier, book=None):
        self.carrier, self.book = carrier, [0, 0] if book is None else book

    def __getattr__(self, name):
        return getattr(self.carrier, name)

    def count(self, sent, received):
        self.book[0] += sent
        self.book[1] += received

    def start_gather(self, mine, rows):
        self.count(*[mine.nbytes * (self.size - 1)] * 2)
        return self.carrier.start_gather(mine, rows)

    def all_to_all(self, sent, received):
        assert sent.nbytes == received.nbytes
        self.count(*[sent.nbytes * (self.size - 1) // self.size] * 2)
        self.carrier.all_to_all(sent, received)

    def complete(self, rows):
        self.count(*[rows.nbytes * (self.size - 1) // self.size] * 2)
        self.carrier.complete(rows)

    def gather(self, words, rows):
        inward = (self.size - 1) * words.nbytes
        assert rows.nbytes == (0 if self.rank else self.size * words.nbytes)
        self.count(*((words.nbytes, 0) if self.rank else (0, inward)))
        self.carrier.gather(words, rows)

    def broadcast(self, words):
        self.count(*((0, words.nbytes) if self.rank else ((self.size - 1) * words.nbytes, 0)))
        self.carrier.broadcast(words)

    def by_node(self):
        return [CountingCarrier(part, self.book) for part in self.carrier.by_node()]

    def counters(self, K):
        return CountingCounters(self, self.carrier.counters(K))


class CountingCounters:
    def __init__(self, carrier, counters):
        self.carrier, self.counters = carrier, counters

    def sum(self, planes):
        each = 2 * (self.carrier.size - 1) * planes.nbytes // self.carrier.size  # as Rabenseifner's or the ring
        self.carrier.count(each, each)
        self.counters.sum(planes)


def ballots(P, W, seed=0):
    return np.random.default_rng([seed, P, W]).integers(0, 2**64, (P, W), np.uint64)


def take_votes(carrier, name, rule, every):
    """Vote on each of `every`, (P, W); return the results, the words afterwards and what was sent and received."""
    outcome = []
    for words in every:
        counting = CountingCarrier(carrier)
        plan = plan_over(counting, words.shape[1], exchange=name, tie=rule, seed=SEED)
        plan.words[:] = words[carrier.rank]
        voted = plan.vote(STEP).copy()
        outcome.append((voted, plan.words.copy(), counting.book))
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
                assert book == booked[rank].tolist()


def votes_of_those_present(carrier, name, rule, abstain, sizes):
    """Return the votes and the bytes of each."""
    counting, outcomes = CountingCarrier(carrier), []
    plan = plan_over(counting, W, exchange=name, tie=rule, seed=SEED, sizes=sizes, abstain=abstain)
    for voted in voters.take_votes(plan, carrier.size, carrier.rank):
        outcomes.append((voted, tuple(counting.book)))
        counting.book[:] = 0, 0
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


def test_who_is_absent_everywhere_leaves_the_vote_of_the_others():
    """By another way than the reference: the same vote of fewer ranks."""
    words, _ = voters.ballots(5)
    others = [0, 1, 3, 4]

    def vote(carrier, every, absent=()):
        plan = plan_over(carrier, W, exchange="alltoall", tie="random", seed=SEED, sizes=SIZES)
        plan.words[:] = every[carrier.rank]
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
