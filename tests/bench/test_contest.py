"""Collective: run under mpirun. Every method passes the check of a contest, and planted faults do not."""

import contextlib
import functools
import itertools
import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
from buckets import held_buckets
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mpisign.bench.contest import Contest
from mpisign.bench.trial import Trial
from mpisign.bench.turn import play
from mpisign.coding import coding
from mpisign.coding.ties import TIES
from mpisign.methods.method import NCCL, Terms
from mpisign.methods.table import METHODS, ready
from mpisign.ranks import agreement
from mpisign.ranks.group import process_group
from mpisign.voting.adversary import ADVERSARIES
from mpisign.voting.bucket import HeldBucket
from mpisign.voting.schedule import SCHEDULES
from mpisign.workload import data

pytestmark = pytest.mark.mpi
RANKS = (2, 3)  # with ties and without

ABLE = tuple(name for name, method in METHODS.items() if NCCL not in method.needs)
VOTES = tuple(name for name in ABLE if METHODS[name].kind == "vote")
CHECKED = ("mpi", "gloo", "fp16", "bf16", "bf16-mpi", "powersgd-2", "vote-alltoall", "vote-reduce",
           "vote-alltoall-gloo")  # fmt: skip
HONEST = [(rule, momentum, None) for rule in TIES for momentum in (0.0, 0.9)]


@pytest.fixture(scope="module", autouse=True)
def torch_distributed(comm):
    torch.set_num_threads(1)
    with process_group(comm, "gloo", one_node=True):
        yield


@contextlib.contextmanager
def contest_of(comm, *names, **terms):
    terms = Terms(seed=3, **terms)
    with ready(comm, {name: METHODS[name] for name in names}, terms=terms) as methods:
        yield Contest(comm, methods, terms=terms)


def overlapped_round(comm, contest, method, iteration):
    with contest.overlapping(method, iteration):
        buckets = held_buckets(comm, (1, 65, 200_000), seed=iteration)
        for future in [play(contest.turn, bucket) for bucket in buckets]:
            future.wait()
    return contest.wrong_overlapped(method)


@pytest.mark.parametrize(("rule", "momentum", "adversary"), [*HONEST, *(("random", 0.9, name) for name in ADVERSARIES)])
def test_every_method_passes_the_check(comm, rule, momentum, adversary):
    mine = adversary if comm.rank % 2 else None
    with contest_of(comm, *ABLE, momentum=momentum, tie=rule, adversary=mine) as contest:
        for iteration in range(3):
            buckets = held_buckets(comm, seed=100 * iteration)
            kept = [bucket.tensor.clone() for bucket in buckets]
            samples = list(contest.round(iteration, buckets))
            assert sorted(sample["method"] for sample in samples) == sorted(ABLE)
            assert [sample["wrong"] for sample in samples] == [0] * len(samples)
            assert all(torch.equal(bucket.tensor, before) for bucket, before in zip(buckets, kept, strict=True))
            contest.apply(iteration, buckets)
            assert agreement.same_everywhere(comm, (bucket.tensor.numpy() for bucket in buckets))


@pytest.mark.parametrize(
    ("rule", "momentum", "adversary"), [*HONEST, *(("random", 0.9, name) for name in ("delayed", "random", "scale"))]
)
def test_every_overlapped_method_passes_the_check(comm, rule, momentum, adversary):
    mine = adversary if comm.rank % 2 else None
    with contest_of(comm, *ABLE, momentum=momentum, tie=rule, adversary=mine) as contest:
        wrong = {method: [overlapped_round(comm, contest, method, i) for i in range(3)] for method in ABLE}
    assert wrong == {method: [0, 0, 0] for method in ABLE}


def test_methods_are_played_in_another_order_each_time_the_same_on_all_ranks(comm):
    with contest_of(comm, *ABLE) as contest:
        orders = [[sample["method"] for sample in contest.round(i, held_buckets(comm))] for i in range(3)]
    assert len({tuple(order) for order in orders}) == 3
    assert all(other == orders for other in comm.allgather(orders))


def spoil(comm, method, *, before=None, after=None):
    """Let the last rank alone do something to each last bucket before or after the exchange."""
    hook, faulty = method.hook, comm.rank == comm.size - 1

    def spoilt(state, bucket):
        if before and faulty and bucket.is_last():
            before(bucket.buffer())
        future = hook(state, bucket)
        if after and bucket.is_last():
            future.wait()
            if faulty:
                after(bucket.buffer())
        return future

    method.hook = spoilt


@pytest.mark.parametrize("name", CHECKED)
def test_a_wrong_result_is_counted(comm, name):
    """One coordinate, on the last rank alone; and of an overlapped exchange a whole bucket."""
    same = METHODS[name].truth.of == "projection"  # of which nothing is known but that all ranks have the same
    with contest_of(comm, name) as contest:
        spoil(comm, contest.methods[name], after=lambda buffer: buffer[-1:].mul_(-1.5))
        (sample,) = contest.round(0, held_buckets(comm))
    assert sample["wrong"] >= (comm.size > 1 if same else 1)
    with contest_of(comm, name) as contest:
        spoil(comm, contest.methods[name], after=lambda buffer: buffer.mul_(-1.5))
        assert overlapped_round(comm, contest, name, 0) >= (comm.size > 1 if same else 10_000)


@pytest.mark.parametrize("name", [*VOTES, "mpi", "bf16-mpi"])
def test_a_stale_or_shifted_result_is_counted(comm, name):
    """The last rank keeps the result of the step before, or one that is off by a coordinate."""
    results = []

    def stale(buffer):
        results.append(buffer.clone())
        buffer.copy_(results[0])

    for spoilt in (stale, lambda buffer: buffer.copy_(buffer.roll(1))):
        with contest_of(comm, name) as contest:
            spoil(comm, contest.methods[name], after=spoilt)
            wrong = [next(contest.round(i, held_buckets(comm, seed=100 * i)))["wrong"] for i in range(2)]
        assert wrong[1] > 100


def test_momentum_is_restored_where_the_gradient_was_divided_anew(comm):
    with contest_of(comm, "vote-alltoall", momentum=0.9) as contest:
        vote = contest.methods["vote-alltoall"]
        parameters = [torch.nn.Parameter(torch.zeros(n)) for n in (65, 200, 3)]

        def buckets(*division):
            cut = [parameters[part] for part in division]
            noise = torch.Generator().manual_seed(comm.rank)
            return [HeldBucket(i, torch.randn(sum(p.numel() for p in part), generator=noise), part, i == len(cut) - 1)
                    for i, part in enumerate(cut)]  # fmt: skip

        def momentum(held):
            return torch.cat([vote.momentum_of(bucket) for bucket in held]).clone()

        whole, parts = (slice(0, 3),), (slice(0, 1), slice(1, 3))
        for future in [vote(bucket) for bucket in buckets(*whole)]:
            future.wait()
        before = momentum(buckets(*whole))
        contest.remember(buckets(*whole))
        for future in [vote(bucket) for bucket in buckets(*parts)]:
            future.wait()
        assert not torch.equal(momentum(buckets(*parts)), before)
        contest.restore()
        assert torch.equal(momentum(buckets(*parts)), before)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_words_that_are_not_those_of_the_gradient_are_counted(comm, momentum):
    """The vote on them is right: what is wrong is what the last rank sends, and what its momentum takes in."""
    with contest_of(comm, *VOTES, momentum=momentum) as contest:
        for vote in contest.methods.values():
            spoil(comm, vote, before=torch.Tensor.neg_)
        for sample in contest.round(0, held_buckets(comm)):
            # Every fifth of a thousand is 0, whose sign stays.
            assert sample["wrong"] == (1600 if momentum else 800), sample
        for name in VOTES:
            assert overlapped_round(comm, contest, name, 0) >= 20_000, name


ABSENT = {  # which ranks have no gradient of a parameter of so many coordinates; any piece has the middle ones whole
    3: lambda rank: rank == 0, 61: lambda rank: False, 20_000: lambda rank: rank % 2, 500: lambda rank: True,
    65: lambda rank: rank > 0, 50_000: lambda rank: rank == 0, 1: lambda rank: False,
}  # fmt: skip


def partly_absent(comm, seed):
    noise = torch.Generator().manual_seed(seed + 10 * comm.rank)
    parts = [torch.randn(n, generator=noise) * (not absent(comm.rank)) for n, absent in ABSENT.items()]
    others = [part.clone() for part in reversed(parts)]  # a momentum belongs to one parameter
    return [HeldBucket(0, torch.cat(parts), parts, False), HeldBucket(1, torch.cat(others), others, True)]


def partly_absent_rounds(comm, contest):
    """What is wrong, by method: in two rounds, and in two overlapped iterations."""
    wrong = {name: [] for name in contest.methods}
    for iteration in range(2):
        for sample in contest.round(iteration, partly_absent(comm, iteration)):
            wrong[sample["method"]].append(sample["wrong"])
        for name in contest.methods:
            with contest.overlapping(name, iteration):
                for future in [play(contest.turn, bucket) for bucket in partly_absent(comm, iteration)]:
                    future.wait()
            wrong[name].append(contest.wrong_overlapped(name))
    return wrong


@pytest.mark.parametrize(("rule", "momentum", "adversary"), [*HONEST, *(("random", 0.9, name) for name in ADVERSARIES)])
def test_votes_of_ranks_of_which_some_are_absent_pass_the_check(comm, rule, momentum, adversary):
    with contest_of(
        comm, *VOTES, momentum=momentum, tie=rule, adversary=adversary if comm.rank % 2 else None
    ) as contest:
        assert partly_absent_rounds(comm, contest) == {name: [0] * 4 for name in VOTES}


@pytest.mark.parametrize("absent", [True, False])
def test_a_rank_that_abstains_unduly_or_unduly_does_not_is_counted(comm, monkeypatch, absent):
    if comm.rank == comm.size - 1:
        monkeypatch.setattr(coding, "silent", lambda gradient, sizes: np.full(len(sizes), absent))
    with contest_of(comm, *VOTES) as contest:
        wrong = partly_absent_rounds(comm, contest)
    assert all(min(counts) > 0 for counts in wrong.values()), wrong


@pytest.mark.parametrize("wrongly", [1.0, -1.0])
def test_a_result_where_nobody_has_voted_is_counted(comm, wrongly):
    with contest_of(comm, "vote-alltoall") as contest:
        spoil(comm, contest.methods["vote-alltoall"],
              after=lambda buffer: buffer[50_066:50_566].add_(wrongly))  # fmt: skip
        (sample,) = contest.round(0, partly_absent(comm, 0))
        assert sample["wrong"] == 500 + (comm.size > 1)  # one more: other bits than on rank 0


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_gradients_that_are_not_finite_count_as_zero(comm, momentum):
    with contest_of(comm, *VOTES, momentum=momentum) as contest:
        for iteration in range(3):
            buckets = held_buckets(comm, seed=iteration)
            for bucket in buckets:
                bucket.tensor[comm.rank :: 7] = (math.nan, math.inf, -math.inf)[iteration]
            assert [sample["wrong"] for sample in contest.round(iteration, buckets)] == [0] * len(VOTES)
            contest.apply(iteration, buckets)


def test_a_vote_that_was_not_taken_is_counted(comm):
    with contest_of(comm, "none", *VOTES) as contest:
        for name in VOTES:
            contest.methods[name].hook = contest.methods["none"].hook
        for sample in contest.round(0, held_buckets(comm)):
            assert sample["wrong"] >= comm.size * sum((1, 64, 65, 1000)) or sample["method"] == "none", sample
        for name in VOTES:
            assert overlapped_round(comm, contest, name, 0) >= comm.size * (1 + 65 + 1024 * 64), name


@pytest.mark.parametrize("adversary", [None, "delayed"])
def test_the_words_are_left_as_they_were_sent(comm, adversary):
    """So a check may look at them when the clock has stopped."""
    with contest_of(comm, *VOTES, adversary=adversary) as contest:
        for name in VOTES:
            vote, seen = contest.methods[name], []
            vote.observe(lambda number, words, absent, seen=seen: seen.append((words, words.clone())))
            for step in range(2):
                seen.clear()
                for future in [vote(bucket) for bucket in held_buckets(comm, seed=step)]:
                    future.wait()
                assert len(seen) == 4
                assert all(torch.equal(words, copy) for words, copy in seen)


def test_a_check_changes_nothing_of_a_votes_state(comm):
    adversary = "delayed" if comm.rank else None
    with contest_of(comm, "vote-alltoall", adversary=adversary) as contest:
        state = contest.methods["vote-alltoall"].state
        for iteration in range(2):
            buckets = held_buckets(comm, (1, 65, 200_000), seed=iteration)
            with contest.overlapping("vote-alltoall", iteration):
                for future in [play(contest.turn, bucket) for bucket in buckets]:
                    future.wait()
            steps, memory = state.steps, repr(state.traitor.memory) if state.traitor else None
            momentum = [state.momentum_of(bucket).clone() for bucket in buckets]
            assert contest.wrong_overlapped("vote-alltoall") == 0
            assert state.steps == steps == iteration + 1
            assert memory == (repr(state.traitor.memory) if state.traitor else None)
            assert all(torch.equal(state.momentum_of(b), kept) for b, kept in zip(buckets, momentum, strict=True))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["mpi", "gloo", "fp16", "bf16", "bf16-mpi"])
def test_a_rank_that_is_left_out_is_noticed(comm, name, schedule):
    with contest_of(comm, name) as contest:
        for n in (1, 300_001):
            wrong = functools.partial(contest.probe, n, device=torch.device("cpu"), schedule=schedule)
            assert wrong() == {name: 0}
            hook = contest.methods[name].hook
            spoil(comm, contest.methods[name], before=torch.Tensor.zero_)
            assert wrong()[name] >= max(64 * comm.size + 1, n) // comm.size
            contest.methods[name].hook = hook


def test_an_exchange_finds_its_gradient_written_last_and_the_caches_flushed(comm):
    with contest_of(comm, "mpi", "vote-alltoall", momentum=0.9) as contest:
        buckets = held_buckets(comm)
        list(contest.round(0, buckets))
        contest.advance()
        kept = [bucket.tensor.clone() for bucket in buckets]
        momenta = [contest.methods["vote-alltoall"].momentum_of(bucket) for bucket in buckets]
        before, found = [momentum.clone() for momentum in momenta], []

        def flush():
            found.append([torch.equal(momentum, was) for momentum, was in zip(momenta, before, strict=True)])
            for bucket in buckets:
                bucket.tensor.fill_(math.nan)  # whoever comes after it has to write the gradient

        contest.flush = flush
        assert [sample["wrong"] for sample in contest.round(1, buckets)] == [0, 0]
        assert found == [[True] * len(buckets)] * 2
        assert all(torch.equal(bucket.tensor, was) for bucket, was in zip(buckets, kept, strict=True))


def test_out_of_turn_the_gradient_is_kept_and_nothing_is_sent(comm):
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(33, 3000), nn.ReLU(), nn.Linear(3000, 101), nn.ReLU(), nn.Linear(101, 3))
    replica = DistributedDataParallel(model, bucket_cap_mb=0.1, gradient_as_bucket_view=True)

    def loss_of(model, step):
        noise = torch.Generator().manual_seed(1000 * step + comm.rank)
        return model(torch.randn(5, 33, generator=noise)).square().mean()

    with contest_of(comm, "none") as contest:
        replica.register_comm_hook(contest.turn, play)
        for step in range(2):  # two buckets from the second step on
            model.zero_grad()
            loss_of(replica, step).backward()
            buckets = contest.turn.buckets
            assert buckets[-1].last
            assert sum(bucket.tensor.numel() for bucket in buckets) == sum(p.numel() for p in model.parameters())
            alone = torch.autograd.grad(loss_of(model, step), list(model.parameters()))
            assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), alone, strict=True))
        assert len(buckets) > 1


@pytest.mark.parametrize("name", ["mpi", "bf16-mpi"])
def test_a_rival_over_mpi_waits_asleep_until_its_last_bucket_is_there(comm, name):
    with contest_of(comm, name) as contest:
        method, computing = contest.methods[name], []
        method.set_schedule("overlap")
        for bucket in held_buckets(comm):
            method(bucket)
            computing.append(method.state.computing)
    assert computing == [True, True, True, False]


def test_powersgd_sends_what_it_is_booked_for(comm, monkeypatch):
    """In its third step, the first that compresses: convolution, matrix, thin matrix and vectors."""
    shapes = [(64, 32, 3, 3), (300, 200), (3, 50), (64,), (1, 1)]
    sent, all_reduce = [], dist.all_reduce

    def counted(tensor, *arguments, **named):
        sent.append(tensor.numel() * tensor.element_size())
        return all_reduce(tensor, *arguments, **named)

    with contest_of(comm, "powersgd-4", momentum=0.0) as contest:
        for step in range(3):
            flat = torch.randn(sum(map(math.prod, shapes)), generator=torch.Generator().manual_seed(step + comm.rank))
            parts = [torch.empty(shape) for shape in shapes]
            if step == 2:
                monkeypatch.setattr(dist, "all_reduce", counted)
            (sample,) = contest.round(step, [HeldBucket(0, flat, parts, True)])
            assert sample["wrong"] == 0
    # An all-reduce makes each of two ranks send as many bytes as go into it.
    assert sum(sent) == METHODS["powersgd-4"].traffic(shapes, "positive", (0, 1)).max()


class _Plain(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.Sequential(nn.Linear(7, 300), nn.ReLU(), nn.Linear(300, 5))

    def forward(self, x):
        return self.parts(x)


@pytest.mark.parametrize("name", ABLE)
def test_what_only_sums_gets_what_ddp_without_a_hook_sums(comm, name):
    """That method's gradient is plain DDP's, where the loss is divided; and no others' hook sums without dividing."""
    assert (METHODS[name].truth.of == "mean") == (name in ("mpi", "gloo", "fp16", "bf16", "bf16-mpi"))
    with contest_of(comm, name) as contest:
        divisor = contest.methods[name].divisor
        assert divisor == (comm.size if name in ("mpi", "gloo") else 1)
        if divisor == comm.size:
            plain, hooked = (DistributedDataParallel(_Plain(), bucket_cap_mb=0.001) for _ in range(2))
            hooked.register_comm_hook(contest.turn, play)
            x = torch.randn(4, 7, generator=torch.Generator().manual_seed(comm.rank))
            plain(x).square().mean().backward()
            with contest.overlapping(name, 1):
                (hooked(x).square().mean() / contest.turn.divisor).backward()
            assert contest.wrong_overlapped(name) == 0
            for a, b in zip(plain.parameters(), hooked.parameters(), strict=True):
                torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["mpi", "gloo"])
def test_a_held_gradient_is_divided_before_the_clock(comm, name, monkeypatch):
    with contest_of(comm, name) as contest:
        play, seen = contest._play, []

        def noted(method, iteration, buckets):
            seen.extend(bucket.tensor.clone() for bucket in buckets)
            return play(method, iteration, buckets)

        monkeypatch.setattr(contest, "_play", noted)
        buckets = held_buckets(comm)
        assert [sample["wrong"] for sample in contest.round(0, buckets)] == [0]
        assert all(torch.equal(one, bucket.tensor / comm.size) for one, bucket in zip(seen, buckets, strict=True))


def test_a_trial_divides_its_loss_for_what_only_sums(comm):
    """Its gradient by `mpi` is the mean of those that the ranks have without an exchange."""
    config = {"seed": 1, "model": "tiny", "image_size": 32, "bucket_mb": None}
    batch = next(data.synthetic(2, 32, seed=comm.rank))
    with contest_of(comm, "mpi") as contest:
        trial = Trial(config, contest.turn, device=torch.device("cpu"), batches=itertools.repeat(batch))
        trial.settle()
        trial.backward()
        means = [comm.allreduce(weight.grad.double().numpy()) / comm.size for weight in trial.model.parameters()]
        with contest.overlapping("mpi", 1):
            trial.backward()
        assert contest.wrong_overlapped("mpi") == 0
    for weight, mean in zip(trial.model.parameters(), means, strict=True):
        torch.testing.assert_close(weight.grad.double(), torch.from_numpy(mean), rtol=1e-4, atol=1e-7)
