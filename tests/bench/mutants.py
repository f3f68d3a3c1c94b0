"""Faulty methods, each of which a check must catch: the table of docs/measuring.md, and what test_mutants.py tries.

A mutant is planted into a method that is ready: it spoils what goes into the exchange, or what has come out of it. It
may talk to the other ranks, as the method does that it stands for.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from mpisign.coding.rules import SignSGD

WAYS = ("serial", "overlapped", "sweep", "train")
ALL = frozenset(WAYS)
MODEL = ALL - {"sweep"}  # what needs several buckets
HELD = frozenset({"serial", "overlapped"})  # what needs gradients that are exactly 0, which the others have none of


class Spot(NamedTuple):
    """Where a mutant is: the ranks, the method, and how many exchanges of whole gradients there were before."""

    comm: object
    ready: object
    turn: int
    memory: dict  # the mutant's own

    @property
    def last(self):
        """Whether this is the last rank."""
        return self.comm.rank == self.comm.size - 1


@dataclass(frozen=True)
class Mutant:
    """A fault: what it does, to which method, and how it is planted.

    `before(spot, bucket)` spoils a bucket before it is exchanged. `after(spot, result, gradient, others)` gets a result
    to spoil in place, the gradient that went in, and the results of all buckets. `instead(spot, bucket)` takes the
    place of the whole exchange.
    """

    name: str
    does: str
    method: str
    before: Callable | None = None
    after: Callable | None = None
    instead: Callable | None = None
    ways: frozenset = ALL
    rule: str = "positive"  # of ties
    even: bool = False  # whether it needs ties, which an even number of ranks has
    momentum: float = 0.9


def plant(comm, ready, mutant):
    """Let a method be that mutant from now on."""
    hook, step, spot = ready.hook, [], Spot(comm, ready, 0, {})

    def spoilt(state, bucket):
        nonlocal spot
        if bucket.index() == 0:
            step.clear()
        gradient = bucket.buffer().clone()
        if mutant.before:
            mutant.before(spot, bucket)
        future = mutant.instead(spot, bucket) if mutant.instead else hook(state, bucket)
        step.append((bucket, gradient, future))
        if bucket.is_last():
            for _, _, one in step:
                one.wait()
            results = [one.buffer() for one, _, _ in step]
            for one, before, _ in step if mutant.after else ():
                spot.memory["bucket"] = one
                mutant.after(spot, one.buffer(), before, results)
            spot = spot._replace(turn=spot.turn + 1)
        return future

    ready.hook = spoilt


# What several of them do.


def signs(x):
    """Return -1 where x is below 0, else 1."""
    return torch.where(x < 0, -1.0, 1.0)


def own_signs(spot, result, gradient, others, where):
    """Leave this rank's own signs in a part of the result."""
    result[where] = signs(gradient[where])


def everyones(spot, tensor):
    """Return the tensors of all ranks, in rows."""
    return torch.from_numpy(np.stack(spot.comm.allgather(tensor.numpy())))


def cast(spot, gradient):
    """Return what all ranks vote, in rows: the signs of the momentum, which has made its step."""
    momentum = spot.ready.momentum_of(spot.memory["bucket"])
    return signs(everyones(spot, gradient if momentum is None else momentum))


def vote_of(weights):
    """Return what makes the result the vote with so many ballots for each rank; ties are for +1."""

    def after(spot, result, gradient, others):
        ballots = torch.tensor(weights(spot.comm.size)) @ cast(spot, gradient)
        result.copy_(torch.where(ballots < 0, -1.0, 1.0))

    return after


def sum_of(weights):
    """Return what makes the result the sum of what goes in on all ranks, with such weights."""

    def after(spot, result, gradient, others):
        result.copy_((torch.tensor(weights(spot.comm.size)) @ everyones(spot, gradient)).to(result.dtype))

    return after


def stale(spot, result, gradient, others):
    result.copy_(spot.memory.setdefault(len(result), result.clone()))


def of_the_step_before(spot, result, gradient, others):
    kept, spot.memory[len(result)] = spot.memory.get(len(result), gradient), result.clone()
    result.copy_(kept)


def nothing(spot, bucket):
    future = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


def swapped(spot, result, gradient, others):
    if result is others[-1]:
        n = min(len(others[0]), len(others[-1]))
        kept = others[0][:n].clone()
        others[0][:n] = others[-1][:n]
        others[-1][:n] = kept


def other_ties(spot, result, gradient, others):
    result[cast(spot, gradient).sum(0) == 0] = -1.0


def other_coins(spot, bucket):
    if bucket.index() == 0:
        spot.ready.set_step(spot.ready.state.steps + 1)


def late(spot, result, gradient, others):
    """Write the result again when its future is done: until then it is the gradient."""
    if spot.last:
        right = result.clone()
        result.copy_(gradient)
        threading.Thread(target=lambda: (time.sleep(0.02), result.copy_(right))).start()


def late_momentum(spot, result, gradient, others):
    """Keep the momentum when the future is done: until then it is the old one."""
    momentum = spot.ready.momentum_of(spot.memory["bucket"])
    right = momentum.clone()
    forget_step(spot, result, gradient, others)
    threading.Thread(target=lambda: (time.sleep(0.02), momentum.copy_(right))).start()


def not_a_number(spot, result, gradient, others):
    result[len(result) // 2] = float("nan")


def forget_momentum(spot, bucket):
    spot.ready.momentum_of(bucket).zero_()


def without_momentum(spot, bucket):
    spot.ready.state.rule = SignSGD()


def forget_step(spot, result, gradient, others):
    momentum = spot.ready.momentum_of(spot.memory["bucket"])
    momentum.sub_(gradient, alpha=0.1).div_(0.9)


def momentum_of_another_beta(spot, result, gradient, others):
    forget_step(spot, result, gradient, others)
    spot.ready.momentum_of(spot.memory["bucket"]).lerp_(gradient, 0.2)


def momentum_twice(spot, bucket):
    spot.ready.momentum_of(bucket).lerp_(bucket.buffer(), 0.1)


def zeros_vote_minus(spot, bucket):
    bucket.buffer()[bucket.buffer() == 0] = -1e-30


def lie(where):
    """Return what lets the last rank vote against its own gradient in a part of each bucket."""

    def before(spot, bucket):
        if spot.last:
            bucket.buffer()[where(bucket.buffer().numel())] *= -100.0

    return before


def absent_votes(spot, result, gradient, others):
    vote_of(lambda P: [1.0] * P)(spot, result, gradient, others)


def every_other(spot, result, gradient, others):
    if spot.turn % 2:
        result.copy_(signs(gradient))


def last_bucket_alone(spot, result, gradient, others):
    if result is others[-1]:
        result.copy_(signs(gradient))


def flip(where):
    """Return what turns the sign of a part of the result, on all ranks alike."""

    def after(spot, result, gradient, others):
        result[where(len(result))] *= -1.0

    return after


def alone(spot, result, gradient, others):
    if spot.last:
        result[-1] *= -1.0


def through(dtype):
    """Return what rounds the result to another type."""
    return lambda spot, result, gradient, others: result.copy_(result.to(dtype).float())


def times(factor):
    """Return what multiplies the result by `factor(P)`."""
    return lambda spot, result, gradient, others: result.mul_(factor(spot.comm.size))


def end(size):
    """Return what leaves a rank's own signs in the last coordinates of each bucket."""

    def after(spot, result, gradient, others):
        begin = max(0, len(result) - size(len(result)))
        own_signs(spot, result, gradient, others, where=slice(begin, None))

    return after


def share(spot, result, gradient, others):
    n, P = len(result), spot.comm.size
    own_signs(spot, result, gradient, others, where=slice((P - 1) * n // P, n))


def rolled(by):
    """Return what shifts the result."""
    return lambda spot, result, gradient, others: result.copy_(result.roll(by))


def mirrored(spot, result, gradient, others):
    """Reverse the coordinates of each whole word."""
    whole = result[: len(result) // 64 * 64].view(-1, 64)
    whole.copy_(whole.flip(1))


def keeping_back(fake):
    """Return what makes PowerSGD's result `fake(spot, result)`, and lets each rank keep back what that leaves."""

    def after(spot, result, gradient, others):
        kept, number = spot.ready.state.error_dict, spot.memory["bucket"].index()
        made = fake(spot, result)
        if number in kept:
            kept[number] = kept[number] + result - made
            result.copy_(made)

    return after


def matrix_of(spot, flat):
    """Return the part of a bucket that is its first parameter, as a matrix; 2 dimensions or not."""
    first = spot.memory["bucket"].parameters()[0]
    return flat[: first.numel()].view(first.shape[0], -1)


def projection_without_a_rank(spot, result):
    kept, made = spot.ready.state.error_dict.get(spot.memory["bucket"].index()), result.clone()
    if kept is not None and spot.memory["bucket"].parameters()[0].dim() == 2:
        put_in = everyones(spot, kept + result)[:-1].sum(0) / spot.comm.size
        basis = torch.linalg.svd(matrix_of(spot, result), full_matrices=False).U[:, :2]
        matrix_of(spot, made).copy_(basis @ (basis.T @ matrix_of(spot, put_in)))
    return made


def half_of_vectors(spot, result):
    return result / 2 if spot.memory["bucket"].parameters()[0].dim() == 1 else result.clone()


VOTE, GATHER, FP32, FP16, BF16, LOW = "vote-alltoall", "vote-allgather", "mpi", "fp16", "bf16", "powersgd-2"
SERIAL = frozenset({"serial"})
MUTANTS = (
    # of votes
    Mutant("no vote", "each rank keeps its own gradient", VOTE, instead=nothing),
    Mutant("stale", "exchanges once, then hands out its old result", GATHER, after=stale),
    Mutant("stale by a step", "hands out the result of the step before", VOTE, after=of_the_step_before),
    Mutant("every other", "exchanges in every second step; between, a rank's own signs", VOTE, after=every_other),
    Mutant("rank left out", "the last rank has no vote", VOTE, after=vote_of(lambda P: [1.0] * (P - 1) + [0.0])),
    Mutant("rank counted twice", "the first rank has two votes", VOTE,
           after=vote_of(lambda P: [2.0] + [1.0] * (P - 1)), even=True),
    Mutant("absent rank counted", "a rank without a gradient votes +1", VOTE, after=absent_votes,
           ways=HELD, momentum=0.0),
    Mutant("other tie rule", "ties are for -1 instead of +1", VOTE, after=other_ties, even=True),
    Mutant("other coins", "ties by the coins of another step, which it claims to be", VOTE, before=other_coins,
           rule="random", even=True),
    Mutant("zeros vote -1", "a gradient of 0 votes -1", VOTE, before=zeros_vote_minus,
           ways=HELD),
    Mutant("momentum forgotten", "the signs of the gradient alone", VOTE, before=forget_momentum),
    Mutant("no momentum", "it has none, though the run asks for one", VOTE, before=without_momentum),
    Mutant("momentum not kept", "votes by the new momentum, and keeps the old one", VOTE, after=forget_step),
    Mutant("momentum late", "keeps the momentum when its future is done", VOTE, after=late_momentum),
    Mutant("momentum of another beta", "votes by the right momentum, and keeps another", VOTE,
           after=momentum_of_another_beta),
    Mutant("momentum twice", "the momentum makes two steps", VOTE, before=momentum_twice),
    Mutant("last word packed wrong", "the last rank's last word is not that of its gradient", VOTE,
           before=lie(lambda n: slice((n - 1) // 64 * 64, n))),
    Mutant("1/64 packed wrong", "nor are the words of 1/64 in the middle", VOTE,
           before=lie(lambda n: slice(n // 2, n // 2 + n // 64 + 1))),
    Mutant("by a coordinate", "the result is shifted by one coordinate", VOTE, after=rolled(1)),
    Mutant("by a word", "the result is shifted by 64 coordinates", VOTE, after=rolled(64)),
    Mutant("words mirrored", "the coordinates of each word come in reverse", VOTE, after=mirrored),
    Mutant("first word", "the first word of each bucket is a rank's own", VOTE,
           after=lambda *of: own_signs(*of, where=slice(0, 64))),
    Mutant("last word", "the last word of each bucket is a rank's own", VOTE, after=end(lambda n: (n - 1) % 64 + 1)),
    Mutant("last 1/64", "the last 1/64 of each bucket is a rank's own", VOTE, after=end(lambda n: n // 64 + 1)),
    Mutant("one share", "a rank's share of an all-to-all is not exchanged", VOTE, after=share),
    Mutant("last bucket", "the last bucket is not exchanged", VOTE, after=last_bucket_alone),
    Mutant("buckets swapped", "two buckets get each other's results", VOTE, after=swapped, ways=MODEL),
    Mutant("one wrong alone", "one sign is wrong, on one rank", VOTE, after=alone),
    Mutant("one wrong everywhere", "one sign is wrong, the same on all ranks", VOTE, after=flip(lambda n: n // 2)),
    Mutant("padding", "what is behind the last whole word is wrong on all ranks", VOTE,
           after=flip(lambda n: slice(n // 64 * 64 if n % 64 else n - 1, None))),
    Mutant("vote late", "the last rank's result is written when its future is done", VOTE, after=late),
    # of means
    Mutant("no mean", "each rank keeps its own gradient", FP32, instead=nothing),
    Mutant("mean stale", "averages once, then hands out its old result", FP32, after=stale),
    Mutant("mean without a rank", "the last rank is left out", FP32,
           after=sum_of(lambda P: [1.0] * (P - 1) + [0.0])),
    Mutant("mean of half", "half of the ranks are left out", BF16,
           after=sum_of(lambda P: [1 / P] * (P // 2) + [0.0] * (P - P // 2))),
    Mutant("zero", "the result is 0", BF16, after=times(lambda P: 0.0)),
    Mutant("divided twice", "the mean is divided by P again", FP16, after=times(lambda P: 1 / P)),
    Mutant("not divided", "the sum", FP32, after=times(lambda P: float(P))),
    Mutant("divided by P - 1", "the sum, divided by one less than there are ranks", FP32,
           after=times(lambda P: P / (P - 1))),
    Mutant("fp16 on the way", "an fp32 mean that was rounded to fp16", FP32, after=through(torch.float16)),
    Mutant("bf16 on the way", "an fp16 mean that was rounded to bf16", FP16, after=through(torch.bfloat16)),
    Mutant("mean by a coordinate", "the mean is shifted by one coordinate", BF16, after=rolled(1)),
    Mutant("NaN", "one coordinate is no number, on all ranks", FP32, after=not_a_number),
    Mutant("mean wrong alone", "one coordinate has the other sign, on one rank", FP16, after=alone),
    Mutant("mean late", "the last rank's result is written when its future is done", FP32, after=late),
    # of PowerSGD
    Mutant("half a projection", "the result is halved, the same on all ranks", LOW, after=times(lambda P: 0.5),
           ways=SERIAL),
    Mutant("no projection", "the result is 0, and all is kept back", LOW,
           after=keeping_back(lambda spot, result: 0 * result), ways=SERIAL),
    Mutant("projection mirrored", "the rows of the result come in reverse, and the rest is kept back", LOW,
           after=keeping_back(lambda spot, result: result.flip(0)), ways=SERIAL),
    Mutant("projection without a rank", "the last rank is left out of the second factor", LOW,
           after=keeping_back(projection_without_a_rank), ways=SERIAL),
    Mutant("vectors halved", "what is not compressed is halved, and the rest is kept back", LOW,
           after=keeping_back(half_of_vectors), ways=SERIAL),
    Mutant("projection wrong alone", "one coordinate has the other sign, on one rank", LOW, after=alone,
           ways=HELD),
)  # fmt: skip
