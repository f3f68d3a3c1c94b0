"""Whose turn it is: the hook that DDP calls hands each bucket to one of the methods, or keeps it."""

# No postponed annotations here: DDP looks at those of its hooks.
import time

import torch
from torch import Tensor
from torch.distributed import GradBucket  # type: ignore[attr-defined]

from ..methods.method import Ready
from ..methods.pieces import Pieces
from ..ranks.clock import Moment, Spans, moment
from ..voting.bucket import HeldBucket


def play(turn: "Turn", bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """Hand a bucket to the method whose turn it is: a DDP communication hook.

    Without one, the buckets of the step are kept in `turn.buckets` and nothing is sent.
    """
    return turn.receive(HeldBucket(bucket.index(), bucket.buffer(), bucket.parameters(), bucket.is_last()))


class Turn:
    """The state of `play`: the method whose turn it is.

    Of a backward that was nobody's turn it has the buckets, and when they were ready.
    """

    def __init__(self, spans: Spans, pieces: Pieces) -> None:
        self.spans, self.pieces = spans, pieces
        self.buckets: list[HeldBucket] = []
        self.ready: list[Moment] = []
        self._ready: Ready | None = None
        self._name, self._step = "", 0
        self._marks: list[float] = []  # when the exchange of each bucket began and ended, if traced

    @property
    def divisor(self) -> int:
        """What the loss is divided by, for the method whose turn it is."""
        return 1 if self._ready is None else self._ready.divisor

    @property
    def is_nobodys(self) -> bool:
        """Whether no method exchanges what backward computes."""
        return self._ready is None

    def give(self, name: str, ready: Ready, *, step: int) -> None:
        """Let a method exchange the buckets of the next backward, as those of this step."""
        ready.set_schedule("overlap")
        ready.set_step(step)
        self.pieces.begin(ready, step)
        self._name, self._ready, self._step, self._marks = name, ready, step, []

    def end(self) -> None:
        """Let it be nobody's turn."""
        if self._ready is not None:
            self._ready.set_schedule("serial")
            self.pieces.end(self._ready)
        if self._marks:  # buckets may be under way side by side, which one row of a time line cannot show
            began = min(self._marks)
            self.spans.mark("exchange", self._name, began, max(self._marks) - began)
        self._ready, self._marks = None, []

    def receive(self, bucket: HeldBucket) -> torch.futures.Future[Tensor]:
        """Do what `play` says."""
        ready = self._ready
        if ready is None:
            if bucket.number == 0:
                self.buckets, self.ready = [], []
            self.buckets.append(bucket)
            self.ready.append(moment(bucket.tensor.device))
            done: torch.futures.Future[Tensor] = torch.futures.Future()
            done.set_result(bucket.tensor)
            return done
        ready.lie(bucket.tensor, bucket=bucket.number, step=self._step)
        self.pieces.keep(ready, bucket)
        if not self.spans.traced or ready.times_itself:
            return ready(bucket)
        self._marks.append(time.perf_counter())
        return ready(bucket).then(self._exchanged)

    def _exchanged(self, future: torch.futures.Future[Tensor]) -> Tensor:
        """Note when a rival is done with a bucket; with NCCL, when it has handed the bucket to the device."""
        self._marks.append(time.perf_counter())
        return future.value()
