"""Collective: run under mpirun. Every exchange gives the exact vote on every rank and sends what it says.

The laws themselves are proved in test_threads, at more P; here each MPI's collectives are. Needs no torch.
"""

import functools
from contextlib import closing

import ballots as voters
import numpy as np
import pytest
import reference
from ballots import SEED, SIZES, take_votes, true_votes
from mpi4py import MPI

import mpisign
from mpisign.coding import counting
from mpisign.coding.sizes import BLOCK
from mpisign.coding.ties import TIES, Tie
from mpisign.network import traffic
from mpisign.ranks import nodes, patience
from mpisign.voting.carriers import HostCarrier
from mpisign.voting.exchange import EXCHANGES, plan, plan_over
from mpisign.voting.native import CounterSum, merge_function
from mpisign.voting.truth import mask, plain_vote

pytestmark = pytest.mark.mpi


def widths(P):
    return [0, 1, P - 1, P, P + 1, BLOCK, BLOCK + 1, 3 * BLOCK * P + 1]


def ballots(comm, W, seed=0):
    """Return all ranks' words and this rank's."""
    every = drawn(comm.size, W, seed)
    return every, every[comm.rank].copy()


def drawn(P, W, seed):
    return np.random.default_rng([seed, W]).integers(0, 2**64, (P, W), np.uint64)


@functools.cache
def reference_majority(P, W, drawn_with, *tie):
    return reference.majority(drawn(P, W, drawn_with), *tie)


def truth(comm, W, rule="positive", seed=0, step=0, *, drawn_with=0):
    """Return the vote on `ballots`; rank 0 computes it, for 16 of them would take eight times as long on two cores."""
    mine = reference_majority(comm.size, W, drawn_with, rule, seed, step) if comm.rank == 0 else None
    return comm.bcast(mine)


@pytest.mark.parametrize("rule", TIES)
@pytest.mark.parametrize("name", EXCHANGES)
def test_vote_is_exact_on_every_rank(comm, name, rule):
    for W in widths(comm.size):
        _, mine = ballots(comm, W)
        given = mine.copy()
        voted = mpisign.vote(comm, mine, exchange=name, tie=Tie(rule, 3, 5))
        assert np.array_equal(voted, truth(comm, W, rule, 3, 5))
        assert np.array_equal(mine, given)


@pytest.mark.parametrize("name", EXCHANGES)
def test_a_plan_votes_again_and_keeps_its_input(comm, name):
    ours = plan(comm, 300, exchange=name, tie="random", seed=4)
    for step in range(3):
        _, ours.words[:] = ballots(comm, 300, step)
        mine = ours.words.copy()
        assert np.array_equal(ours.vote(step), truth(comm, 300, "random", 4, step, drawn_with=step))
        assert np.array_equal(ours.words, mine)
    ours.close()


@pytest.mark.parametrize("name", EXCHANGES)
def test_a_patient_vote_is_the_same(comm, name):
    patient = patience.Patient(comm.Dup())
    patient.patient = True
    for W in (*widths(comm.size), 100_000):
        _, words = ballots(comm, W)
        ours = plan(patient, W, exchange=name)
        ours.words[:] = words
        assert np.array_equal(ours.vote(), truth(comm, W))
        ours.close()
    patient.Free()


def test_a_patient_gather_is_one_to_any_root(comm):
    patient = patience.Patient(comm.Dup())
    patient.patient = True
    every, mine = ballots(comm, 1000)
    for root in range(comm.size):
        gathered = np.zeros_like(every) if comm.rank == root else None
        patient.Gather(mine, gathered, root)
        assert gathered is None or np.array_equal(gathered, every)
    patient.Free()


@pytest.fixture(params=[1, 2, 3])
def pretended_nodes(request, comm, monkeypatch):
    """Make MPI see nodes of so many ranks, the last one perhaps smaller."""
    monkeypatch.setattr(nodes, "split_by_node", lambda of: of.Split(of.rank // request.param, of.rank))
    return [rank // request.param for rank in range(comm.size)]


@pytest.mark.parametrize("rule", TIES)
def test_hierarchical_is_exact_over_several_nodes(comm, pretended_nodes, rule):
    assert nodes.nodes_of(comm) == pretended_nodes
    for W in widths(comm.size):
        _, mine = ballots(comm, W)
        voted = mpisign.vote(comm, mine, exchange="hierarchical", tie=Tie(rule, 3, 5))
        assert np.array_equal(voted, truth(comm, W, rule, 3, 5))


class CountingComm:
    """A communicator that books what its collectives deliver (the rules stand at the head of network.traffic)."""

    def __init__(self, comm, book=None):
        self.comm, self.book = comm, [0, 0] if book is None else book

    def __getattr__(self, name):
        return getattr(self.comm, name)

    def Split(self, *args):
        return CountingComm(self.comm.Split(*args), self.book)

    def count(self, sent, received):
        self.book[0] += sent
        self.book[1] += received

    def Iallgather(self, sent, received):
        self.count((self.size - 1) * sent.nbytes, received.nbytes - sent.nbytes)
        return self.comm.Iallgather(sent, received)

    def Alltoall(self, sent, received):
        self.count(sent.nbytes * (self.size - 1) // self.size, received.nbytes * (self.size - 1) // self.size)
        self.comm.Alltoall(sent, received)

    def Allgather(self, sent, received):
        block = received.nbytes // self.size
        self.count((self.size - 1) * block, (self.size - 1) * block)
        self.comm.Allgather(sent, received)

    def Gather(self, sent, received, root):
        if self.rank == root:
            assert received.nbytes == self.size * sent.nbytes
        self.count(*((0, (self.size - 1) * sent.nbytes) if self.rank == root else (sent.nbytes, 0)))
        self.comm.Gather(sent, received, root)

    def Bcast(self, data, root):
        self.count(*(((self.size - 1) * data.nbytes, 0) if self.rank == root else (0, data.nbytes)))
        self.comm.Bcast(data, root)

    def Allreduce(self, sent, received, op):
        merged = received
        if op != MPI.BAND:
            merged, elements, datatype = received
            assert merged.nbytes == elements * datatype.Get_size()
        each = 2 * (self.size - 1) * merged.nbytes // self.size  # as Rabenseifner's or the ring algorithm
        self.count(each, each)
        self.comm.Allreduce(sent, received, op)


@pytest.mark.parametrize("rule", TIES)
@pytest.mark.parametrize("name", EXCHANGES)
def test_traffic_is_what_is_sent(comm, pretended_nodes, name, rule):
    for W in widths(comm.size):
        booking = CountingComm(comm)
        ours = plan(booking, W, exchange=name, tie=rule)
        ours.vote()
        ours.close()
        formula = traffic.vote(name, W, tie=rule, nodes=pretended_nodes)
        assert formula.shape == (comm.size, 2)
        assert booking.book == formula[comm.rank].tolist()


@pytest.mark.parametrize("rule", TIES)
@pytest.mark.parametrize("name", EXCHANGES)
@pytest.mark.parametrize(("abstain", "sizes"), [(False, SIZES), (True, SIZES)])
def test_those_who_vote_decide_and_the_traffic_is_exact(comm, pretended_nodes, name, rule, abstain, sizes):
    truths = true_votes(comm.size, rule, abstain=abstain, sizes=sizes)
    booked = traffic.vote(name, voters.W, tie=rule, nodes=pretended_nodes, parts=len(sizes), abstain=abstain)
    booking = CountingComm(comm)
    with closing(HostCarrier(booking)) as carrier:
        ours = plan_over(carrier, voters.W, exchange=name, tie=rule, seed=SEED, sizes=sizes, abstain=abstain)
        booking.book[:] = 0, 0
        for voted, true in zip(take_votes(ours, comm.size, comm.rank), truths, strict=True):
            assert np.array_equal(voted, true)
            assert booking.book == booked[comm.rank].tolist()
            booking.book[:] = 0, 0


@pytest.mark.parametrize("name", EXCHANGES)
def test_those_who_vote_decide_patiently_too(comm, name):
    patient = patience.Patient(comm.Dup())
    patient.patient = True
    with closing(HostCarrier(patient)) as carrier:
        ours = plan_over(carrier, voters.W, exchange=name, tie="zero", seed=SEED, sizes=SIZES)
        truths = true_votes(comm.size, "zero", abstain=False, sizes=SIZES)
        for voted, true in zip(take_votes(ours, comm.size, comm.rank), truths, strict=True):
            assert np.array_equal(voted, true)
    patient.Free()


@pytest.mark.parametrize("rule", TIES)
def test_the_votes_by_adding_up_bits_are_true(comm, rule):
    """What the bench holds the exchanges to is the reference, where ranks abstain as well."""
    words, abstains = voters.ballots(comm.size)
    truths = true_votes(comm.size, rule, abstain=True, sizes=SIZES)
    for absent, true in zip(voters.attendances(comm.size), truths, strict=True):
        mine, gone = words[comm.rank].copy(), absent[comm.rank]
        mine &= ~mask(gone, SIZES)
        voted = plain_vote(
            comm, mine, tie=Tie(rule, SEED, voters.STEP), absent=gone, sizes=SIZES, abstains=abstains[comm.rank]
        )
        assert np.array_equal(voted, true)


def test_a_thousand_plans_share_their_carriers_communicators(comm):
    """MPI has some two thousand of them; a model may have as many buckets."""
    if comm.size not in (1, 2):
        pytest.skip("as with 2 ranks")
    for _ in range(2):  # and again: what is closed is free
        with closing(HostCarrier(comm)) as carrier:
            plans = [plan_over(carrier, 1, exchange="hierarchical", tie="zero", seed=0) for _ in range(1030)]
            for ours in plans:
                ours.vote()
                ours.close()


def test_a_turn_that_differs_is_a_fault_on_every_rank(comm):
    if comm.size == 1:
        pytest.skip("needs ranks that can differ")
    for name in EXCHANGES:
        with closing(HostCarrier(comm)) as carrier:
            ours = plan_over(carrier, 2, exchange=name, tie="positive", seed=0, sizes=(100,))
            ours.roll.write(turn=5 + (comm.rank == 1), agreed=0, faults=0, absent=np.zeros(1, bool))
            with pytest.raises(ValueError, match="different buckets or steps: turn 5 on rank 0, 6 on rank 1; all"):
                ours.vote()


def test_alltoall_sends_two_bits_a_coordinate_at_most(comm):
    n, P = 25_600_000, comm.size
    sent = traffic.vote("alltoall", n // 64, tie="positive", nodes=[0] * P)[comm.rank, 0]
    assert sent == 2 * (P - 1) * 8 * -(-n // 64 // P)


def test_alltoall_keeps_two_bits_a_coordinate(comm):
    arrays = [x for x in vars(plan(comm, 100_000)).values() if isinstance(x, np.ndarray)]
    buffers = {id(x if x.base is None else x.base): (x if x.base is None else x.base) for x in arrays}
    assert len(buffers) >= 2
    assert sum(buffer.nbytes for buffer in buffers.values()) <= 2 * 8 * (100_000 + comm.size)


@pytest.mark.parametrize("K", [1, 2, 5, 11])
def test_native_op_merges_counters(comm, K):
    """On one rank, by MPI's own Reduce_local."""
    rng = np.random.default_rng(K)
    for G in (0, 1, 3):
        a, b = rng.integers(0, 2**64, (2, G, K, BLOCK), np.uint64)
        a[:, -1] = b[:, -1] = 0  # room for the sum
        if K == 1:
            a[:] = 0
        merged = b.copy()
        counting.merge(a, merged)
        total = CounterSum(K)
        total.op.Reduce_local([a, G, total.datatype], [b, G, total.datatype])
        assert total.op.Is_commutative()
        total.free()
        assert np.array_equal(b, merged)
    assert merge_function(K) is merge_function(K)


def test_ranks_that_ask_for_different_votes_are_refused(comm):
    if comm.size == 1:
        pytest.skip("needs ranks that can differ")
    with pytest.raises(ValueError, match="ranks ask for different votes"):
        mpisign.vote(comm, np.zeros(5 + (comm.rank == 1), np.uint64))
    with pytest.raises(ValueError, match="exchange: unknown name 'ring', choose from allgather"):
        mpisign.vote(comm, np.zeros(5, np.uint64), exchange="ring")
    with pytest.raises(ValueError, match="tie: unknown rule"):
        mpisign.vote(comm, np.zeros(5, np.uint64), tie="heads")
    with pytest.raises(ValueError, match="words: "):
        mpisign.vote(comm, np.zeros((5, 2), np.uint64))


@pytest.mark.parametrize("faulty", [{"exchange": "ring"}, {"tie": "heads"}, {"words": np.zeros(5)}])
def test_a_fault_of_one_rank_is_refused_on_all(comm, faulty):
    arguments = {"words": np.zeros(5, np.uint64)} | (faulty if comm.rank == comm.size - 1 else {})
    with pytest.raises(ValueError, match=next(iter(faulty))):
        mpisign.vote(comm, **arguments)
