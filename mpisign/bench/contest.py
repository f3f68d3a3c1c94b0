"""Several methods, one model: in random order, timed and checked.

Serial: each exchanges a copy of the same gradient. Overlapped: each has iterations of its own, during whose backward
it exchanges bucket by bucket.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..methods.pieces import Pieces
from ..methods.projections import Kept
from ..methods.truth import Evidence, Result, Sent, Truth, floats, tie_of
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
    `turn` is the state of the DDP hook `play`. `costs` has this rank's seconds: of each "check" of a method's results,
    and in overlapped iterations of each "check_pieces", and of "keep_pieces" during the iteration.
    """

    def __init__(self, comm: Comm, methods: dict[str, Ready], *, terms: Terms, iterations: int = 1) -> None:
        self.comm, self.methods, self.terms = comm, methods, terms
        self.turn = Turn(terms.spans, Pieces(terms, iterations))
        self.costs: dict[str, list[float]] = defaultdict(list)
        self._order = np.random.default_rng(terms.seed)  # the same on all ranks
        self._results: list[Result] = []  # of the last overlapped iteration
        self._remembered: list[HeldBucket] = []
        self._momentum = Snapshot()  # of all votes, by the buckets that are remembered
        self._work = Snapshot()  # its copies of the gradient are what methods exchange
        for ready in methods.values():
            ready.set_schedule("serial")

    def shuffled(self) -> list[str]:
        """Return the methods in a new random order, the same on all ranks."""
        names = list(self.methods)
        return [names[at] for at in self._order.permutation(len(names))]

    def round(self, iteration: int, buckets: list[HeldBucket]) -> Iterator[dict[str, Any]]:
        """Let each method exchange a copy of the gradient; yield this rank's sample for each, in the order of play.

        A sample is method, seconds, wrong (of all ranks), the events of the time line and the seconds of each span.
        """
        self.remember(buckets)
        honest = [floats(bucket.tensor) for bucket in buckets]
        momenta: list[Floats | None] = [*map(floats, self._momentum.copies)] or [None for _ in buckets]
        truth, spans = Truth(self.comm, self.terms), self.terms.spans
        for name in self.shuffled():
            ready, work = self.methods[name], self._copies(buckets)
            self.restore()
            lies = self._lie(ready, iteration, work)
            gradients = [floats(bucket.tensor.clone()) for bucket in work] if lies else honest
            with spans("wait"):
                patience.quiet_barrier(self.comm)
                self.comm.Barrier()
            before = [_floats(ready.kept_of(bucket)) for bucket in work]
            seconds, sent = self._play(name, iteration, work)
            taken, events = spans.take(), spans.take_events()
            with self._costing("check"):
                results = [Result(bucket.tensor) for bucket in work]
                kept = [Kept(was, _floats(ready.kept_of(bucket)), [tuple(part.shape) for part in bucket.parts])
                        for was, bucket in zip(before, work, strict=True)]  # fmt: skip
                evidence = [
                    Evidence(gradient, bucket.sizes, tie_of(self.terms, bucket.number, step=iteration), momentum,
                             sent.get(bucket.number), kept=mine)
                    for gradient, momentum, bucket, mine in zip(gradients, momenta, work, kept, strict=True)
                ]  # fmt: skip
                wrong = truth.wrong(ready.method, evidence, results)
            yield {"method": name, "seconds": seconds, "wrong": wrong, "events": events, **taken}
        self._work.drop()  # backward needs the room, and memory is touched anew where no clock runs

    def apply(self, iteration: int, buckets: list[HeldBucket]) -> None:
        """Replace the gradient itself by what the first vote, else the first rival, makes of it.

        Comes after the round of the same iteration, whose momentum is remembered no longer then.
        """
        first = {ready.method.kind: name for name, ready in reversed(self.methods.items())}
        chosen = next(first[kind] for kind in ("vote", "rival", "ceiling") if kind in first)
        self.restore()
        self.forget()
        self._lie(self.methods[chosen], iteration, buckets)
        self._play(chosen, iteration, buckets)
        self.terms.spans.take()
        self.terms.spans.take_events()
        patience.quiet_barrier(self.comm)

    def probe(self, device: torch.device) -> dict[str, int]:
        """Let each method that averages do so with a vector whose mean is 1; count the coordinates that are not.

        By method, on all ranks. Each coordinate comes from one rank alone, so a rank that is left out shows, which on
        many ranks the bounds that a round checks against would let pass in bf16.
        """
        wrong, P = dict[str, int](), self.comm.size
        vector = torch.zeros(64 * P + 1, device=device)
        vector[self.comm.rank :: P] = P
        for name, ready in self.methods.items():
            if ready.method.truth.of == "mean":
                work = HeldBucket(0, vector.clone(), [vector], True)
                self._play(name, 0, [work])
                mine = int(torch.count_nonzero((work.tensor - 1).abs() > 4 * ready.method.truth.roundoff))
                wrong[name] = self.comm.allreduce(mine)
        self.terms.spans.take_events()
        return wrong

    @contextlib.contextmanager
    def overlapping(self, name: str, step: int) -> Iterator[None]:
        """Let `play` exchange by this method, during backward."""
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
        """Free what was kept for `restore`."""
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

    def _copies(self, buckets: list[HeldBucket]) -> list[HeldBucket]:
        self._work.keep(bucket.tensor for bucket in buckets)
        copies = zip(buckets, self._work.copies, strict=True)
        return [HeldBucket(bucket.number, work, bucket.parts, bucket.last) for bucket, work in copies]

    def _lie(self, ready: Ready, iteration: int, buckets: list[HeldBucket]) -> bool:
        """Put a dense traitor's gradients into the buckets, and tell whether there is one."""
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
