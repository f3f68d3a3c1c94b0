"""Several methods, one model: in random order, timed and checked.

Serial: each exchanges a copy of the same gradient. Overlapped: each has iterations of its own, during whose backward
it exchanges bucket by bucket.
"""

# No postponed annotations here: DDP looks at those of its hooks.
import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributed import GradBucket  # type: ignore[attr-defined]

from ..coding import bits
from ..coding.ties import Tie
from ..methods.catalogue import VOTES
from ..methods.rivals import BASELINES, LOSSY, Hook, Shapes, betray
from ..network.traffic import Traffic, all_reduce, vote
from ..ranks import agreement, patience
from ..ranks.clock import Spans
from ..voting import truth as check
from ..voting.adversary import Traitor
from ..voting.bucket import HeldBucket
from ..voting.carriers import GroupComm
from ..voting.hook import VoteState, vote_hook

if TYPE_CHECKING:
    from mpi4py import MPI

SAMPLE = 1024  # words of each bucket that are checked when it is exchanged during backward


class Kept(NamedTuple):
    """What an overlapped exchange is checked by: a piece of what this rank put in."""

    bucket: HeldBucket  # its tensor will be the result
    first: int  # word
    gradient: bits.Floats
    momentum: bits.Floats | None


def play(contest: "Contest", bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """Hand a bucket to the method whose turn it is: a DDP communication hook.

    Without one, the buckets of the step are kept in `contest.held` and nothing is sent.
    """
    return contest.take(HeldBucket(bucket.index(), bucket.buffer(), bucket.parameters(), bucket.is_last()))


def traffic(method: str, shapes: Shapes, tie: str, nodes: list[int]) -> Traffic:
    """Return the bytes that each rank sends and receives for a bucket of such tensors, int64 (P, 2)."""
    if method in VOTES:
        W = bits.words_for(sum(map(math.prod, shapes)))
        return vote(VOTES[method].exchange, W, tie, nodes)
    return all_reduce(BASELINES[method].wire_bytes(shapes), len(nodes))


class Contest:
    """The methods of a run, ready to exchange. Collective, as all it does.

    `adversary` is what this rank sends instead of its votes and gradients, None if it is honest.
    `takes_device_memory`: MPI does. If `traced`, the spans have a time line. `costs` has this rank's seconds: of each
    "check" of a method's results, and in overlapped iterations of each "check_pieces", and of "keep_pieces" during the
    iteration.
    """

    def __init__(
        self, comm: "MPI.Comm", methods: tuple[str, ...], *, momentum: float, tie: str, seed: int,
        adversary: str | None = None, takes_device_memory: bool = False, traced: bool = False,
    ) -> None:  # fmt: skip
        self.comm, self.methods, self.tie, self.seed = comm, methods, tie, seed
        self.spans = Spans(traced)
        self.costs: dict[str, list[float]] = defaultdict(list)
        self.order = np.random.default_rng(seed)  # the same on all ranks
        self.voters: dict[str, VoteState] = {}
        self.hooks: dict[str, tuple[Hook, Any]] = {}
        self.turn: str | None = None  # whose it is in `play`
        self.iteration = 0
        self.held: list[HeldBucket] = []
        self._kept: list[Kept] = []
        self._keeping = 0.0  # seconds, of this iteration
        self._exchanging: list[float] = []  # when a baseline began and ended with each bucket, if traced
        self._traitor = None if adversary is None else Traitor(adversary, seed, comm.rank)  # of the dense methods
        self._resources = contextlib.ExitStack()
        for method in methods:
            if method in VOTES:
                exchange, backend = VOTES[method]
                carrier: Any = GroupComm(comm, backend) if backend else comm
                state = VoteState(
                    carrier, momentum, exchange=exchange, tie=tie, adversary=adversary, seed=seed, spans=self.spans,
                    schedule="serial", takes_device_memory=takes_device_memory,
                )  # fmt: skip
                self._resources.callback(state.close)
                if self.voters:  # else each would have its own, of the size of the gradient
                    state.share_momentum(next(iter(self.voters.values())))
                self.voters[method] = state
                self.hooks[method] = vote_hook, state
            else:
                self.hooks[method] = BASELINES[method].hook(comm, self._resources)
        self.voter = next(iter(self.voters.values()), None)  # any one: they share their momentum
        self.keeps_momentum = self.voter is not None and momentum > 0
        self.before: dict[int, Tensor] = {}  # the momentum of each bucket before this iteration
        self._work: dict[int, Tensor] = {}

    def close(self) -> None:
        """Free what the methods hold."""
        self._resources.close()

    def take(self, bucket: HeldBucket) -> torch.futures.Future[Tensor]:
        """Do what `play` says."""
        if self.turn is None:
            self.held = [bucket] if bucket.number == 0 else [*self.held, bucket]
            done: torch.futures.Future[Tensor] = torch.futures.Future()
            done.set_result(bucket.tensor)
            return done
        hook, state = self.hooks[self.turn]
        if self.turn not in self.voters:
            betray(self._traitor, bucket.tensor, bucket.number, self.iteration)
        began = time.perf_counter()
        self._keep(bucket)  # of `none` too, that all pay alike
        ended = time.perf_counter()
        self._keeping += ended - began
        if not self.spans.traced or self.turn in self.voters:
            return hook(state, bucket)
        self._exchanging.append(ended)
        return hook(state, bucket).then(self._exchanged)

    def _exchanged(self, future: torch.futures.Future[Tensor]) -> Tensor:
        """Note when a baseline is done with a bucket; with NCCL, when it has handed the bucket to the device."""
        self._exchanging.append(time.perf_counter())
        return future.value()

    def _keep(self, bucket: HeldBucket) -> None:
        """Keep SAMPLE words of what goes in, drawn anew for each bucket and iteration, the same on all ranks."""
        W = bits.words_for(bucket.tensor.numel())
        coins = np.random.default_rng([self.seed, self.iteration, bucket.number])
        first = int(coins.integers(max(1, W - SAMPLE + 1)))
        piece = slice(first * bits.BITS, (first + SAMPLE) * bits.BITS)
        momentum = None
        if self.turn in self.voters and self.keeps_momentum:
            momentum = self.voters[self.turn].momentum_of(bucket)[piece].cpu().numpy().copy()
        self._kept.append(Kept(bucket, first, bucket.tensor[piece].cpu().numpy().copy(), momentum))

    @contextlib.contextmanager
    def overlapping(self, method: str, iteration: int) -> Iterator[None]:
        """Let `play` exchange by this method, during backward."""
        self.turn, self.iteration, self._kept = method, iteration, []
        self._keeping, self._exchanging = 0.0, []
        self._set_schedule(method, "overlap")
        if method in self.voters:
            self.voters[method].steps = iteration
        try:
            yield
        finally:
            self.turn = None
            self._set_schedule(method, "serial")
        self.costs["keep_pieces"].append(self._keeping)
        if self._exchanging:  # buckets may be under way side by side, which one row of a time line cannot show
            began = min(self._exchanging)
            self.spans.mark("exchange", method, began, max(self._exchanging) - began)

    def _set_schedule(self, method: str, schedule: str) -> None:
        _, state = self.hooks[method]
        if isinstance(state, VoteState):
            state.schedule = schedule
        elif isinstance(state, patience.Patient):
            state.patient = schedule == "overlap"

    def wrong_overlapped(self, method: str) -> int:
        """Count the wrong coordinates, on all ranks, of what was kept of the last overlapped iteration. Collective."""
        with self._costing("check_pieces"):
            return self._wrong_pieces(method)

    @contextlib.contextmanager
    def _costing(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.costs[name].append(time.perf_counter() - began)

    def _wrong_pieces(self, method: str) -> int:
        wrong = 0
        for bucket, first, gradient, momentum in self._kept:
            result = bucket.tensor[first * bits.BITS :][: len(gradient)].cpu().numpy()
            if method in self.voters:
                state = self.voters[method]
                words = _sent(state, self.iteration, bucket, gradient, momentum, first)
                tie = Tie(state.tie, state.seed, state.tie_step(bucket.number))
                wrong += check.wrong_signs(result, check.plain_vote(self.comm, words, tie, first))
            elif BASELINES[method].roundoff == LOSSY:
                wrong += agreement.differs(self.comm, result)
            elif BASELINES[method].roundoff is not None:
                wrong += _wrong_mean(check.Mean(self.comm, gradient), method, result)
        patience.quiet_barrier(self.comm)
        return int(self.comm.allreduce(wrong))

    def round(self, iteration: int, held: list[HeldBucket]) -> Iterator[dict[str, Any]]:
        """Let each method exchange a copy of the gradient; yield this rank's sample for each, in the order of play.

        A sample is method, seconds, wrong (of all ranks), the events of the time line and the seconds of each span.
        """
        self._remember_momentum(held)
        truth = _Truth(self, iteration, held)
        for method in self.shuffled():
            work = [self._copy(bucket) for bucket in held]
            self._restore_momentum(held)
            self.lie(method, iteration, work)
            with self.spans("wait"):
                patience.quiet_barrier(self.comm)
                self.comm.Barrier()
            seconds = self._play(method, iteration, work)
            spans, events = self.spans.take(), self.spans.take_events()
            with self._costing("check"):
                wrong = truth.wrong(method, work)
            yield {"method": method, "seconds": seconds, "wrong": wrong, "events": events, **spans}

    def shuffled(self) -> list[str]:
        """Return the methods in a new random order, the same on all ranks."""
        return [self.methods[at] for at in self.order.permutation(len(self.methods))]

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
            if roundoff not in (None, LOSSY):
                work = HeldBucket(0, vector.clone(), [vector], True)
                self._play(method, 0, [work])
                wrong += int(torch.count_nonzero((work.tensor - 1).abs() > 4 * roundoff))
        self.spans.take_events()
        return int(self.comm.allreduce(wrong))

    def apply(self, iteration: int, held: list[HeldBucket]) -> None:
        """Replace the gradient itself by what the first voting method, else the first that sends, makes of it.

        Comes after the round of the same iteration.
        """
        sending = [method for method in self.methods if method != "none"]
        chosen = next(iter(self.voters), sending[0] if sending else "none")
        self._restore_momentum(held)
        self.lie(chosen, iteration, held)
        self._play(chosen, iteration, held)
        self.spans.take()
        self.spans.take_events()
        patience.quiet_barrier(self.comm)

    def lie(self, method: str, iteration: int, buckets: list[HeldBucket]) -> None:
        """Put a traitor's gradients into the buckets for a dense method; a vote's hook does so by itself."""
        if method not in self.voters:
            for bucket in buckets:
                betray(self._traitor, bucket.tensor, bucket.number, iteration)

    @property
    def lies(self) -> bool:
        """Whether this rank is a traitor."""
        return self._traitor is not None

    def remember(self) -> None:
        """Keep the momentum as it is now, for `restore`."""
        self._remember_momentum(self.held)

    def restore(self) -> None:
        """Set the momentum back to what was remembered."""
        self._restore_momentum(self.held)

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
        synchronize(buckets[0].tensor.device)
        began = time.perf_counter()
        for future in [hook(state, bucket) for bucket in buckets]:
            future.wait()
        synchronize(buckets[0].tensor.device)
        seconds = time.perf_counter() - began
        self.spans.mark("training", method, began, seconds)
        return seconds


def _copy_to(target: Tensor | None, source: Tensor) -> Tensor:
    """Copy into `target` if it fits, else into a new tensor."""
    if target is None or target.shape != source.shape:
        target = torch.empty_like(source)
    return target.copy_(source)


def synchronize(where: torch.device) -> None:
    """Wait for a device, so that the clock sees what it did."""
    if where.type == "cuda":
        torch.cuda.synchronize(where)


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
        elif BASELINES[method].roundoff is None:
            return 0
        elif BASELINES[method].roundoff == LOSSY:
            wrong = sum(agreement.differs(self.contest.comm, result) for result in results)
        else:
            self.means = self.means or [self._mean(*pair) for pair in zip(self.held, self.gradients, strict=True)]
            pairs = zip(self.means, results, strict=True)
            wrong = sum(_wrong_mean(mean, method, result) for mean, result in pairs)
        patience.quiet_barrier(self.contest.comm)
        return int(self.contest.comm.allreduce(wrong))

    def _vote(self, state: VoteState, bucket: HeldBucket, gradient: bits.Floats) -> bits.Words:
        before = self.contest.before.get(bucket.number)
        momentum = before.cpu().numpy() if self.contest.keeps_momentum and before is not None else None
        words = _sent(state, self.iteration, bucket, gradient, momentum)
        tie = Tie(state.tie, state.seed, state.tie_step(bucket.number))
        return check.plain_vote(self.contest.comm, words, tie)

    def _mean(self, bucket: HeldBucket, gradient: bits.Floats) -> check.Mean:
        if self.contest.lies:
            bucket = HeldBucket(bucket.number, bucket.tensor.clone(), bucket.parts, bucket.last)
            self.contest.lie("mean", self.iteration, [bucket])
            gradient = bucket.tensor.cpu().numpy()
        return check.Mean(self.contest.comm, gradient)


def _wrong_mean(mean: check.Mean, method: str, result: bits.Floats) -> int:
    rival = BASELINES[method]
    return mean.wrong(result, rival.roundoff or 0.0, rival.underflow)


def _sent(
    state: VoteState, step: int, bucket: HeldBucket, gradient: bits.Floats, momentum: bits.Floats | None, first: int = 0
) -> bits.Words:
    """Return the words that this rank ought to send, for the piece of a bucket from word `first` on."""
    words = np.zeros(bits.words_for(bucket.tensor.numel()), np.uint64)
    piece = slice(first, first + bits.words_for(len(gradient)))
    words[piece] = check.plain_words(gradient, momentum, state.momentum)
    state.steps = step
    state.betray(words, bucket.tensor.numel(), bucket.number)
    return words[piece]
