"""Several methods, one model: in random order, timed and checked.

Serial: each exchanges a copy of the same gradient. Overlapped: each has iterations of its own, during whose backward
it exchanges bucket by bucket.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..methods.pieces import Pieces
from ..methods.projections import Kept
from ..methods.truth import Evidence, Result, Sent, Truth, floats, look, tie_of
from ..ranks import patience
from ..voting.bucket import HeldBucket
from ..workload.snapshot import Snapshot
from .turn import Turn

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..coding.bits import Floats
    from ..methods.method import Ready, Terms
    from ..ranks.launch import Comm


class Contest:
    """The order and the rounds of methods that are ready. Collective, as all it does.

    The pieces that are kept of overlapped exchanges cover each bucket in so many `iterations`, the planned number.
    `flush` drives what was not written just now out of the caches, before each exchange of a held gradient.
    `turn` is the state of the DDP hook `play`. `costs` has this rank's seconds: of each "check" of a method's results,
    and in overlapped iterations of each "check_pieces", and of "keep_pieces" during the iteration.
    """

    def __init__(
        self, comm: Comm, methods: dict[str, Ready], *, terms: Terms, iterations: int = 1,
        flush: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.comm, self.methods, self.terms, self.flush = comm, methods, terms, flush
        self.turn = Turn(terms.spans, Pieces(terms, iterations))
        self.costs: dict[str, list[float]] = defaultdict(list)
        self._order = np.random.default_rng(terms.seed)  # the same on all ranks
        self._results: list[Result] = []  # of the last overlapped iteration
        self._remembered: list[HeldBucket] = []
        self._momentum = Snapshot()  # of all votes, by the buckets that are remembered
        self.gradient = Snapshot()  # of what methods exchange one after the other, in the same buckets
        for ready in methods.values():
            ready.set_schedule("serial")

    def shuffled(self) -> list[str]:
        """Return the methods in a new random order, the same on all ranks."""
        names = list(self.methods)
        return [names[at] for at in self._order.permutation(len(names))]

    def round(self, iteration: int, buckets: list[HeldBucket]) -> Iterator[dict[str, Any]]:
        """Let each method exchange the gradient; yield this rank's sample for each, in the order of play.

        Before each, momentum and gradient are set back, and the caches flushed between: so backward leaves them, with
        the gradient written just now and all else long ago. In the end, too, the buckets hold the gradient.
        A sample is method, seconds, wrong (of all ranks), the events of the time line and the seconds of each span.
        """
        self.remember(buckets)
        self.gradient.keep(bucket.tensor for bucket in buckets)
        honest = [floats(gradient) for gradient in self.gradient.copies]
        momenta: list[Floats | None] = [*map(floats, self._momentum.copies)] or [None for _ in buckets]
        truth, spans = Truth(self.comm, self.terms), self.terms.spans
        for name in self.shuffled():
            ready = self.methods[name]
            self.restore()
            self.terms.room.clear()
            before = [_floats(ready.kept_of(bucket)) for bucket in buckets]
            self.flush()
            patience.quiet_barrier(self.comm)  # ranks that share a cache would drive out each other's gradient
            self.gradient.restore()
            lies = self._prepare(ready, iteration, buckets)
            gradients = [floats(bucket.tensor * ready.divisor) for bucket in buckets] if lies else honest
            with spans("wait"):
                patience.quiet_barrier(self.comm)
                self.comm.Barrier()
            seconds, sent = self._play(name, iteration, buckets)
            taken, events = spans.take(), spans.take_events()
            with self._costing("check"):
                results, stepped = look([bucket.tensor for bucket in buckets], [*map(ready.momentum_of, buckets)])
                evidence = [
                    Evidence(
                        gradient, bucket.sizes, tie_of(self.terms, bucket.number, step=iteration), momentum,
                        after, sent.get(bucket.number),
                        kept=Kept(kept, _floats(ready.kept_of(bucket)), [tuple(part.shape) for part in bucket.parts]),
                    )
                    for gradient, momentum, after, bucket, kept
                    in zip(gradients, momenta, stepped, buckets, before, strict=True)
                ]  # fmt: skip
                wrong = truth.wrong(ready.method, evidence, results)
            yield {"method": name, "seconds": seconds, "wrong": wrong, "events": events, **taken}
        self.gradient.restore()
        self.gradient.drop()  # backward needs the room

    def apply(self, iteration: int, buckets: list[HeldBucket]) -> None:
        """Replace the gradient itself by what the first vote, else the first rival, makes of it.

        Comes after the round of the same iteration, whose momentum is remembered no longer then.
        """
        first = {ready.method.kind: name for name, ready in reversed(self.methods.items())}
        chosen = next(first[kind] for kind in ("vote", "rival", "ceiling") if kind in first)
        self.restore()
        self.forget()
        self.terms.room.clear()
        self._prepare(self.methods[chosen], iteration, buckets)
        self._play(chosen, iteration, buckets)
        self.terms.spans.take()
        self.terms.spans.take_events()
        patience.quiet_barrier(self.comm)

    def advance(self) -> None:
        """Let the momentum make its step, where no vote is applied: the one of the last round."""
        kept = zip(self._momenta(), self._momentum.copies, self._remembered, strict=False)  # none without a momentum
        for momentum, before, bucket in kept:
            momentum.copy_(before).lerp_(bucket.tensor, 1 - self.terms.momentum)

    def probe(self, coordinates: int, *, device: torch.device, schedule: str) -> dict[str, int]:
        """Let each method that averages do so with a vector whose mean is 1; count the coordinates that are not.

        By method, on all ranks. It comes twice, as buckets of so many coordinates (at least a few per rank), under this
        schedule. Each is of one rank alone, so a rank that is left out shows, which on many ranks a round would let
        pass in bf16.
        """
        self.gradient, self._momentum = Snapshot(), Snapshot()  # all rounds are over
        wrong, P = dict[str, int](), self.comm.size
        vectors = [torch.empty(max(coordinates, 64 * P + 1), device=device) for _ in range(2)]
        for name, ready in self.methods.items():
            if ready.method.truth.of == "mean":
                for vector in vectors:
                    vector.zero_()
                    vector[self.comm.rank :: P] = P / ready.divisor
                work = [HeldBucket(at, vector, [vector], last=at == 1) for at, vector in enumerate(vectors)]
                ready.set_schedule(schedule)
                self._play(name, 0, work)
                ready.set_schedule("serial")
                off = [~(vector.sub_(1).abs_() <= 4 * ready.method.truth.roundoff) for vector in vectors]  # so is NaN
                wrong[name] = self.comm.allreduce(sum(int(torch.count_nonzero(one)) for one in off))
        self.terms.spans.take_events()
        return wrong

    @contextlib.contextmanager
    def overlapping(self, name: str, step: int) -> Iterator[None]:
        """Let `play` exchange by this method, during backward. What the result is at the end is what counts."""
        self.terms.room.clear()
        self.turn.give(name, self.methods[name], step=step)
        try:
            yield
        finally:
            self.turn.end()
        self._results = self.turn.pieces.results()
        self.costs["keep_pieces"].append(self.turn.pieces.seconds)

    def wrong_overlapped(self, name: str) -> int:
        """Count the wrong coordinates, on all ranks, of the last overlapped iteration. Collective."""
        with self._costing("check_pieces"):
            evidence = self.turn.pieces.evidence()
            return Truth(self.comm, self.terms).wrong(self.methods[name].method, evidence, self._results)

    def remember(self, held: list[HeldBucket]) -> None:
        """Keep the momentum of these buckets as it is now, for `restore`."""
        self._remembered = held
        self._momentum.keep(self._momenta())

    def forget(self) -> None:
        """Forget what was kept for `restore`."""
        self._remembered = []
        self._momentum.drop()

    def restore(self) -> None:
        """Set the momentum back to what was remembered, also where DDP has divided the gradient anew since."""
        self._momentum.restore(self._momenta())

    def _momenta(self) -> list[torch.Tensor]:
        """Return the momentum of each bucket that is remembered: of any vote, for they share it; none without one."""
        any_vote = next((ready for ready in self.methods.values() if ready.method.kind == "vote"), None)
        momenta = [any_vote.momentum_of(bucket) for bucket in self._remembered] if any_vote else []
        return [momentum for momentum in momenta if momentum is not None]

    @contextlib.contextmanager
    def _costing(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.costs[name].append(time.perf_counter() - began)

    def _prepare(self, ready: Ready, iteration: int, buckets: list[HeldBucket]) -> bool:
        """Make of the gradient what DDP hands to a method; tell whether this rank lies in it."""
        for bucket in buckets:
            bucket.tensor.div_(ready.divisor)  # by 1 too: else some find their gradient warmer than others
        lies = [ready.lie(bucket.tensor, bucket=bucket.number, step=iteration) for bucket in buckets]
        return any(lies)

    def _play(self, name: str, iteration: int, buckets: list[HeldBucket]) -> tuple[float, dict[int, Sent]]:
        """Return the seconds that a method takes for these buckets, and what it sends of them if it is a vote.

        No words are copied in that time: an exchange leaves those that it is given as they were until the next vote.
        """
        ready, sent, device = self.methods[name], dict[int, Sent](), buckets[0].tensor.device

        def see(number: int, words: torch.Tensor, absent: NDArray[np.bool_]) -> None:
            sent[number] = Sent(words, absent)

        ready.set_step(iteration)
        ready.observe(see)
        synchronize(device)
        began = time.perf_counter()
        for future in [ready(bucket) for bucket in buckets]:
            future.wait()
        synchronize(device)
        seconds = time.perf_counter() - began
        ready.observe(None)
        self.terms.spans.mark("training", name, began, seconds)
        return seconds, sent


def _floats(tensor: torch.Tensor | None) -> Floats | None:
    return None if tensor is None else floats(tensor)


def synchronize(where: torch.device) -> None:
    """Wait for a device, so that the clock sees what it did."""
    if where.type == "cuda":
        torch.cuda.synchronize(where)
