"""Several methods, one gradient: each exchanges a copy of it, in random order, timed and checked."""

# No postponed annotations here: DDP looks at those of its hooks.
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed import GradBucket  # type: ignore[attr-defined]

from . import bits, check, mpi
from .baselines import BASELINES, Hook
from .exchange import EXCHANGES, Traffic, all_reduce_traffic
from .hook import VoteState, vote_hook
from .spans import Spans
from .votes import Tie

if TYPE_CHECKING:
    from mpi4py import MPI

VOTE = "vote-"  # a method is a name in BASELINES, or this and a name in EXCHANGES


@dataclass(frozen=True)
class HeldBucket:
    """A bucket that outlives its step of backward: what hooks ask of a GradBucket."""

    number: int
    tensor: Tensor
    parts: list[Tensor]
    last: bool

    def index(self) -> int:
        return self.number

    def buffer(self) -> Tensor:
        return self.tensor

    def parameters(self) -> list[Tensor]:
        return self.parts

    def is_last(self) -> bool:
        return self.last


def collect(held: list[HeldBucket], bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """Keep the buckets of a backward pass in `held` and send nothing: a DDP communication hook."""
    held.append(HeldBucket(bucket.index(), bucket.buffer(), bucket.parameters(), bucket.is_last()))
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


def traffic(method: str, n: int, tie: str, nodes: list[int]) -> Traffic:
    """Return the bytes that each rank sends and receives for a bucket of n coordinates, int64 (P, 2)."""
    if method.startswith(VOTE):
        return EXCHANGES[method.removeprefix(VOTE)].traffic(bits.words_for(n), tie, nodes)
    return all_reduce_traffic(BASELINES[method].coordinate_bytes * n, len(nodes))


class Contest:
    """The methods of a run, ready to exchange. Collective, as all it does.

    `adversary` is what this rank sends instead of its votes, None if it is honest.
    """

    def __init__(
        self, comm: "MPI.Comm", methods: tuple[str, ...], *, momentum: float, tie: str, seed: int,
        adversary: str | None = None,
    ) -> None:  # fmt: skip
        self.comm, self.methods, self.tie, self.seed = comm, methods, tie, seed
        self.spans = Spans()
        self.order = np.random.default_rng(seed)  # the same on all ranks
        self.voters: dict[str, VoteState] = {}
        self.hooks: dict[str, tuple[Hook, Any]] = {}
        for method in methods:
            if method.startswith(VOTE):
                state = VoteState(comm, momentum, method.removeprefix(VOTE), tie, adversary, seed, self.spans)
                if self.voters:  # else each would have its own, of the size of the gradient
                    state.share_momentum(next(iter(self.voters.values())))
                self.voters[method] = state
                self.hooks[method] = vote_hook, state
            else:
                self.hooks[method] = BASELINES[method].hook(comm)
        self.voter = next(iter(self.voters.values()), None)  # any one: they share their momentum
        self.keeps_momentum = self.voter is not None and momentum > 0
        self.before: dict[int, Tensor] = {}  # the momentum of each bucket before this iteration
        self._work: dict[int, Tensor] = {}

    def close(self) -> None:
        """Free what the methods hold."""
        for state in self.voters.values():
            state.close()

    def round(self, iteration: int, held: list[HeldBucket]) -> Iterator[dict[str, Any]]:
        """Let each method exchange a copy of the gradient; yield this rank's sample for each, in the order of play.

        A sample is method, seconds, wrong (of all ranks) and the seconds of each span.
        """
        self._remember_momentum(held)
        truth = _Truth(self, iteration, held)
        for at in self.order.permutation(len(self.methods)):
            method = self.methods[at]
            work = [self._copy(bucket) for bucket in held]
            self._restore_momentum(held)
            with self.spans("wait"):
                mpi.gather_quietly(self.comm)
                self.comm.Barrier()
            seconds = self._play(method, iteration, work)
            spans = self.spans.take()
            yield {"method": method, "seconds": seconds, "wrong": truth.wrong(method, work), **spans}

    def probe(self, device: torch.device) -> int:
        """Let each dense method average a vector whose mean is 1 and return how many coordinates are not, on all ranks.

        Each coordinate comes from one rank alone, so a rank that is left out shows. On many ranks the bound that a
        round checks against, the worst that roundings can do, would let it pass in bf16.
        """
        wrong, P = 0, self.comm.size
        vector = torch.zeros(64 * P + 1, device=device)
        vector[self.comm.rank :: P] = P
        for method in self.methods:
            roundoff = None if method in self.voters else BASELINES[method].roundoff
            if roundoff is not None:
                work = HeldBucket(0, vector.clone(), [vector], True)
                self._play(method, 0, [work])
                wrong += int(torch.count_nonzero((work.tensor - 1).abs() > 4 * roundoff))
        return int(self.comm.allreduce(wrong))

    def apply(self, iteration: int, held: list[HeldBucket]) -> None:
        """Replace the gradient itself by what the first voting method, else the first that sends, makes of it.

        Comes after the round of the same iteration.
        """
        sending = [method for method in self.methods if method != "none"]
        chosen = next(iter(self.voters), sending[0] if sending else "none")
        self._restore_momentum(held)
        self._play(chosen, iteration, held)
        self.spans.take()
        mpi.gather_quietly(self.comm)

    def _remember_momentum(self, held: list[HeldBucket]) -> None:
        if self.voter and self.keeps_momentum:
            for bucket in held:
                self.before[bucket.number] = _copy_to(self.before.get(bucket.number), self.voter.momentum_of(bucket))

    def _restore_momentum(self, held: list[HeldBucket]) -> None:
        if self.voter and self.keeps_momentum:
            for bucket in held:
                self.voter.momentum_of(bucket).copy_(self.before[bucket.number])

    def _copy(self, bucket: HeldBucket) -> HeldBucket:
        work = self._work[bucket.number] = _copy_to(self._work.get(bucket.number), bucket.tensor)
        return HeldBucket(bucket.number, work, bucket.parts, bucket.last)

    def _play(self, method: str, iteration: int, buckets: list[HeldBucket]) -> float:
        hook, state = self.hooks[method]
        if method in self.voters:
            state.steps = iteration
        synchronize(buckets[0].tensor)
        began = time.perf_counter()
        for future in [hook(state, bucket) for bucket in buckets]:
            future.wait()
        synchronize(buckets[0].tensor)
        return time.perf_counter() - began


def _copy_to(target: Tensor | None, source: Tensor) -> Tensor:
    """Copy into `target` if it fits, else into a new tensor."""
    if target is None or target.shape != source.shape:
        target = torch.empty_like(source)
    return target.copy_(source)


def synchronize(tensor: Tensor) -> None:
    """Wait for the device of `tensor`, so that the clock sees what it did."""
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


class _Truth:
    """What the methods ought to make of one gradient, computed when first asked for."""

    def __init__(self, contest: "Contest", iteration: int, held: list[HeldBucket]) -> None:
        self.contest, self.iteration, self.held = contest, iteration, held
        self.gradients = [bucket.tensor.cpu().numpy() for bucket in held]
        self.votes: list[bits.Words] = []
        self.means: list[check.Mean] = []

    def wrong(self, method: str, work: list[HeldBucket]) -> int:
        """Count the wrong coordinates of a method's result on all ranks. Collective."""
        results = [bucket.tensor.cpu().numpy() for bucket in work]
        if method in self.contest.voters:
            self.votes = self.votes or [self._vote(self.contest.voters[method], *pair)
                                        for pair in zip(self.held, self.gradients, strict=True)]  # fmt: skip
            wrong = sum(map(check.wrong_signs, results, self.votes))
        else:
            roundoff = BASELINES[method].roundoff
            if roundoff is None:
                return 0
            self.means = self.means or [check.Mean(self.contest.comm, gradient) for gradient in self.gradients]
            pairs = zip(self.means, results, strict=True)
            wrong = sum(mean.wrong(result, roundoff) for mean, result in pairs)
        mpi.gather_quietly(self.contest.comm)
        return int(self.contest.comm.allreduce(wrong))

    def _vote(self, state: VoteState, bucket: HeldBucket, gradient: bits.Floats) -> bits.Words:
        before = self.contest.before.get(bucket.number)
        momentum = before.numpy() if self.contest.keeps_momentum and before is not None else None
        words = check.plain_words(gradient, momentum, state.momentum)
        state.steps = self.iteration
        state.betray(words, len(gradient), bucket.number)
        tie = Tie(state.tie, state.seed, state.tie_step(bucket.number))
        return check.plain_vote(self.contest.comm, words, tie)
