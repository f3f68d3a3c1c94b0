"""Collective: run under mpirun. The vote through DistributedDataParallel is the paper's update, on every rank."""

import functools
import itertools
import threading

import numpy as np
import pytest
import reference
import torch
import torch.distributed as dist
from buckets import held_buckets
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import mpisign
from mpisign.coding import coding
from mpisign.coding.sizes import words_for
from mpisign.coding.ties import TIES
from mpisign.network import traffic
from mpisign.ranks.clock import Spans
from mpisign.ranks.group import process_group
from mpisign.voting.adversary import ADVERSARIES, Traitor
from mpisign.voting.bucket import HeldBucket
from mpisign.voting.carriers import GroupComm
from mpisign.voting.exchange import EXCHANGES, plan_over
from mpisign.voting.schedule import SCHEDULES
from mpisign.voting.tensors import DeviceCarrier, carrier_for, plan_for

pytestmark = pytest.mark.mpi

LR, DECAY, BETA = 1e-2, 1e-1, 0.9


@pytest.fixture(scope="module", autouse=True)
def torch_distributed(comm):
    torch.set_num_threads(1)
    with process_group(comm, "gloo", one_node=True):
        yield


def test_a_vote_waits_asleep_until_its_last_bucket_is_there(comm):
    with mpisign.VoteState(comm, guard=False) as state:
        computing = []
        for bucket in held_buckets(comm):
            mpisign.vote_hook(state, bucket)
            computing.append(state._comm.computing)
    assert computing == [True, True, True, False]


def small_model():
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(33, 3000), nn.ReLU(), nn.Linear(3000, 101), nn.ReLU(), nn.Linear(101, 3))


def parallel(model):
    """Two buckets after the first step: DDP's first one takes a megabyte, whatever is asked for."""
    return DistributedDataParallel(model, bucket_cap_mb=0.1, gradient_as_bucket_view=True)


def loss_of(model, rank, step):
    noise = torch.Generator().manual_seed(1000 * step + rank)
    return model(torch.randn(5, 33, generator=noise)).square().mean()


def plain_training(P, steps, rule="positive", beta=BETA):
    """Train by the paper's algorithm 1, all workers in one process, votes by counting."""
    model = small_model()
    parameters = list(model.parameters())
    momenta = [[np.zeros(p.numel(), np.float32) for p in parameters] for _ in range(P)]
    for step in range(steps):
        signs = []
        for rank in range(P):
            gradients = torch.autograd.grad(loss_of(model, rank, step), parameters)
            ballots = []
            for m, gradient in zip(momenta[rank], gradients, strict=True):
                g = gradient.numpy().reshape(-1)
                if g.any():
                    m[:] = reference.momentum(m, g, beta) if beta else g
                # Who has no gradient, as where all units are dead, abstains, and its momentum rests.
                ballots.append(np.where(m < 0, -1, 1) * g.any())
            signs.append(ballots)
        with torch.no_grad():
            for i, parameter in enumerate(parameters):
                tally = sum(signs[rank][i] for rank in range(P))
                vote = np.sign(tally) if rule == "zero" else np.where(tally < 0, -1, 1)
                vote = vote * any(signs[rank][i].any() for rank in range(P))
                voted = torch.from_numpy(vote.astype(np.float32)).view_as(parameter)
                parameter.grad = voted
        torch.optim.SGD(parameters, LR, weight_decay=DECAY).step()
    return [parameter.detach().numpy() for parameter in parameters]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("rule", ["positive", "zero"])
@pytest.mark.parametrize("name", EXCHANGES)
def test_training_by_the_hook_is_the_papers_algorithm(comm, name, rule, schedule):
    if comm.size not in (2, 3) and name != "alltoall":
        pytest.skip("test_threads proves the exchange itself for other numbers of ranks")
    model = small_model()
    replica = parallel(model)
    state = mpisign.VoteState(comm, rule=mpisign.Signum(BETA), exchange=name, tie=rule, zeros="positive",
                              schedule=schedule)  # fmt: skip
    replica.register_comm_hook(state, mpisign.vote_hook)
    optimizer = torch.optim.SGD(model.parameters(), LR, weight_decay=DECAY)
    for step in range(4):  # DDP divides the buckets anew after the first
        optimizer.zero_grad()
        loss_of(replica, comm.rank, step).backward()
        optimizer.step()
    state.close()
    for ours, plain in zip(model.parameters(), plain_training(comm.size, 4, rule), strict=True):
        assert np.array_equal(ours.detach().numpy(), plain)


def trained(comm, schedule, **settings):
    model = small_model()
    replica = parallel(model)
    state = mpisign.VoteState(comm, schedule=schedule, **settings)
    replica.register_comm_hook(state, mpisign.vote_hook)
    for step in range(4):
        model.zero_grad()
        loss_of(replica, comm.rank, step).backward()
        torch.optim.SGD(model.parameters(), LR).step()
    state.close()
    return list(model.parameters())


@pytest.mark.parametrize("adversary", [None, *ADVERSARIES])
def test_both_schedules_give_the_same_bits(comm, adversary):
    settings = {"tie": "random", "seed": 5, "adversary": adversary if comm.rank % 2 else None}
    assert all(map(torch.equal, trained(comm, "serial", **settings), trained(comm, "overlap", **settings)))


def test_the_overlapped_vote_is_taken_during_backward(comm):
    """The first bucket is voted on before the last layer that backward comes to has been passed."""
    model, order = small_model(), []
    replica = parallel(model)
    state = mpisign.VoteState(comm, guard=False)
    vote_bucket, first = state.vote_bucket, threading.Event()

    def noted(bucket):
        order.append((bucket.index(), threading.current_thread() is threading.main_thread()))
        done = vote_bucket(bucket)
        first.set()
        return done

    state.vote_bucket = noted
    replica.register_comm_hook(state, mpisign.vote_hook)
    for step in range(2):  # two buckets from the second step on
        order.clear()
        first.clear()
        loss = loss_of(replica, comm.rank, step)
        if step:
            model[0].weight.register_hook(lambda gradient: None if first.wait(60) else pytest.fail("not voted on yet"))
        loss.backward()
    state.close()
    assert order == [(0, False), (1, False)]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("bucket", [0, 1])
def test_a_vote_that_fails_is_raised_by_backward(comm, schedule, bucket):
    model = small_model()
    replica = parallel(model)
    state = mpisign.VoteState(comm, schedule=schedule, guard=False)
    replica.register_comm_hook(state, mpisign.vote_hook)
    loss_of(replica, comm.rank, 0).backward()

    def broken(held):
        if held.index() == bucket:  # on all ranks: one that fails alone ends the job, see test_bench
            raise ArithmeticError("no vote today")
        held.buffer().zero_()
        return held.buffer()

    state.vote_bucket = broken
    with pytest.raises(ArithmeticError, match="no vote today"):
        loss_of(replica, comm.rank, 1).backward()
    with pytest.raises(ArithmeticError, match="no vote today"):  # not a second time, as if nothing had been
        state.take(held_buckets(comm, (3,))[0], torch.futures.Future())
    state.close()


def test_parameters_without_a_gradient_stay_where_they_are(comm):
    """DDP hands out a gradient of 0 for them, and nobody votes on that."""

    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, x):
            return self.used(x)

    torch.manual_seed(1)
    model = Idle()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    replica = DistributedDataParallel(model, find_unused_parameters=True, gradient_as_bucket_view=True)
    state = mpisign.VoteState(comm)
    replica.register_comm_hook(state, mpisign.vote_hook)
    optimizer = torch.optim.SGD(model.parameters(), LR, weight_decay=DECAY)
    for _ in range(3):
        optimizer.zero_grad()
        replica(torch.ones(1, 5)).sum().backward()
        optimizer.step()
    state.close()
    moved = [not torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True)]
    assert moved == [True, True, False, False]


def test_without_momentum_the_gradients_signs_are_voted_on(comm):
    model = small_model()
    replica = parallel(model)
    state = mpisign.VoteState(comm, rule=mpisign.SignSGD(), zeros="positive")
    replica.register_comm_hook(state, mpisign.vote_hook)
    loss_of(replica, comm.rank, 0).backward()
    torch.optim.SGD(model.parameters(), LR, weight_decay=DECAY).step()
    state.close()
    for ours, plain in zip(model.parameters(), plain_training(comm.size, 1, beta=0.0), strict=True):
        assert np.array_equal(ours.detach().numpy(), plain)


def test_momentum_is_saved_and_restored(comm):
    def train(steps, model, state, start=0):
        replica = parallel(model)
        replica.register_comm_hook(state, mpisign.vote_hook)
        for step in range(start, start + steps):
            model.zero_grad()
            loss_of(replica, comm.rank, step).backward()
            torch.optim.SGD(model.parameters(), LR).step()

    made = functools.partial(
        mpisign.VoteState, comm, zeros="positive"
    )  # coins go by the buckets, and DDP's first differ
    straight, whole = small_model(), made()
    train(4, straight, whole)
    stopped, first = small_model(), made()
    train(2, stopped, first)
    resumed, second = small_model(), made()
    resumed.load_state_dict(stopped.state_dict())
    second.load_state_dict(first.state_dict(stopped.parameters()), resumed.parameters())
    train(2, resumed, second, 2)
    for state in (whole, first, second):
        state.close()
    kept, again = whole.state_dict(straight.parameters()), second.state_dict(resumed.parameters())
    assert kept["steps"] == again["steps"] == 4
    assert all(map(torch.equal, kept["momentum"], again["momentum"]))
    assert all(map(torch.equal, straight.parameters(), resumed.parameters()))


WITHOUT_COUNTERS = [name for name, exchange in EXCHANGES.items() if not exchange.counts]


def check_tensor_votes(comm, rule, make):
    """Vote twice on words of each width by the plan that `make` returns, of which ranks may abstain on some."""
    widths = [0, 1, comm.size, 64 * comm.size + 1]
    for W, abstain in [*itertools.product(widths, (False, True)), (5000, False)]:
        every, abstains = np.random.default_rng(W).integers(0, 2**64, (2, comm.size, W), np.uint64)
        plan, given = make(W, abstain=abstain), {"abstains": abstains} if abstain else {}
        plan.words[:] = coding.tensor_of(every[comm.rank])
        if abstain:
            plan.abstains[:] = coding.tensor_of(abstains[comm.rank])
        for step in range(2):
            true = reference.majority(every, rule, 4, step, **given)
            assert np.array_equal(coding.words_of(plan.vote(step, Spans())), true)
            assert np.array_equal(coding.words_of(plan.words), every[comm.rank])
        plan.close()


def planner(comm, name, rule):
    host = torch.device("cpu")
    carrier = carrier_for(comm, host, name)
    return functools.partial(plan_for, carrier, exchange=name, tie=rule, seed=4, where=host)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rule", TIES)
@pytest.mark.parametrize("name", WITHOUT_COUNTERS)
def test_votes_over_a_process_group_are_exact_and_warn_of_nothing(comm, name, rule):
    group = GroupComm(None, "gloo").Dup()
    check_tensor_votes(comm, rule, planner(group, name, rule))
    group.Free()


@pytest.mark.parametrize("rule", TIES)
@pytest.mark.parametrize("name", WITHOUT_COUNTERS)
def test_votes_on_tensors_over_mpi_are_exact(comm, name, rule):
    """As over an MPI that takes device memory, whose carrier this is; here the device is the host."""
    carrier = DeviceCarrier(comm, torch.device("cpu"))
    check_tensor_votes(comm, rule, functools.partial(plan_over, carrier, exchange=name, tie=rule, seed=4))


@pytest.mark.parametrize("rule", TIES)
@pytest.mark.parametrize("name", EXCHANGES)
def test_votes_on_tensors_of_the_host_are_exact(comm, name, rule):
    check_tensor_votes(comm, rule, planner(comm, name, rule))


def test_a_process_group_sums_no_counters(comm):
    group = GroupComm(None, "gloo")
    with pytest.raises(ValueError, match="exchange: 'reduce' sums counters, which takes words of the host over MPI"):
        planner(group, "reduce", "positive")(5)
    with pytest.raises(ValueError, match="exchange: 'hierarchical' sums counters"):
        mpisign.VoteState(group, exchange="hierarchical")


@pytest.mark.parametrize("name", ADVERSARIES)
def test_a_traitor_sends_what_its_kind_makes_of_the_honest_words(comm, name):
    state = mpisign.VoteState(comm, rule=mpisign.SignSGD(), zeros="positive", adversary=name, seed=3)
    traitor, sent, expected = Traitor(name, 3, rank=comm.rank), [], []
    state.observer = lambda number, words, absent: sent.append((number, coding.words_of(words).tolist()))
    for step in range(3):
        for bucket in held_buckets(comm, (2, 64, 65, 1000), seed=step):
            words = reference.pack(bucket.tensor.numpy())
            traitor.lie_in_words(words, bucket.tensor.numel(), bucket=bucket.number, step=step)
            expected.append((bucket.number, words.tolist()))
            state.take(bucket, torch.futures.Future())
    state.close()
    assert sent == expected


def test_what_is_not_finite_counts_as_0(comm):
    state = mpisign.VoteState(comm, zeros="positive")
    vector = torch.tensor([float("nan"), -1.0, 1.0])
    state.vote_bucket(HeldBucket(0, vector, [vector], True))
    state.close()
    assert vector.tolist() == [1, -1, 1]


@pytest.mark.parametrize("rule", TIES)
@pytest.mark.parametrize("name", EXCHANGES)
def test_where_all_abstain_nothing_moves(comm, name, rule):
    """The second parameter has no gradient anywhere, the third one on rank 0 alone."""
    state = mpisign.VoteState(comm, rule=mpisign.SignSGD(), exchange=name, tie=rule, zeros="abstain")
    parameters = [torch.zeros(n) for n in (1, 63, 65, 200)]
    gradients = [half_a_gradient(rank) for rank in range(comm.size)]
    vector = gradients[comm.rank].clone()
    state.vote_bucket(HeldBucket(0, vector, parameters, True))
    state.close()
    tally = sum(gradient.sign() for gradient in gradients)
    voters = sum(gradient.sign().abs() for gradient in gradients)
    assert torch.equal(vector == 0, (voters == 0) | (tally == 0) & (rule == "zero"))
    assert torch.equal(vector[tally != 0], tally[tally != 0].sign())
    assert rule != "positive" or (vector[(voters != 0) & (tally == 0)] == 1).all()


def half_a_gradient(rank):
    gradient = torch.randn(329, generator=torch.Generator().manual_seed(rank))
    gradient[torch.rand(329, generator=torch.Generator().manual_seed(100 + rank)) < 0.5] = 0.0
    gradient[0], gradient[1:64], gradient[64:129] = 1.0, 0.0, gradient[64:129] * (rank > 0)
    return gradient


@pytest.mark.parametrize("rule", ["positive", "zero"])
@pytest.mark.parametrize("name", EXCHANGES)
def test_the_statistics_count_the_bytes_that_are_booked(comm, name, rule):
    state, sizes = mpisign.VoteState(comm, exchange=name, tie=rule), (2, 64, 5000)
    for bucket in held_buckets(comm, sizes):
        state.vote_bucket(bucket)
    state.end_step()
    step = state.statistics()
    state.close()
    booked = sum(traffic.vote(name, words_for(n), tie=rule, nodes=[0] * comm.size, parts=1) for n in sizes)
    assert [step.sent, step.received] == booked[comm.rank].tolist()


def test_process_group_is_there(comm):
    assert dist.get_world_size() == comm.size
    assert dist.get_rank() == comm.rank


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"exchange": "ring"}, "exchange: "),
        ({"tie": "heads"}, "tie: "),
        ({"rule": mpisign.Signum(1.0)}, "rule: "),
        ({"zeros": "never"}, "zeros: "),
        ({"nonfinite": "ignore"}, "nonfinite: "),
        ({"adversary": "liar"}, "adversary: "),
        ({"schedule": "never"}, "schedule: "),
    ],
)
def test_faulty_arguments_are_named(comm, arguments, named):
    with pytest.raises(ValueError, match=named):
        mpisign.VoteState(comm, **(arguments if comm.rank == comm.size - 1 else {}))


@pytest.mark.parametrize(
    ("dtype", "named"), [(torch.complex64, "a complex gradient"), (torch.int32, "got torch.int32")]
)
def test_gradients_of_another_type_are_refused(comm, dtype, named):
    state, vector = mpisign.VoteState(comm), torch.zeros(3, dtype=dtype)
    with pytest.raises(ValueError, match=f"bucket: .*{named}"):
        state.take(HeldBucket(0, vector, [vector], True), torch.futures.Future())
    state.close()
