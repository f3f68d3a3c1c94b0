"""A model in training, whose gradients the methods exchange."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy

from ..ranks import clock
from ..ranks.clock import Spans
from ..workload import models
from .readiness import Readiness
from .turn import Turn, play

if TYPE_CHECKING:
    from ..workload.data import Batch


class Trial:
    """A model in training: its replica, its optimizer, the spans of its own work, and when its buckets are ready."""

    def __init__(self, config: dict[str, Any], turn: Turn, *, device: torch.device, batches: Iterator[Batch]) -> None:
        self.device, self.batches, self.turn = device, batches, turn
        torch.manual_seed(config["seed"])
        self.model = models.build(config["model"], config["image_size"]).to(device)
        self.replica = models.parallel(self.model, config["bucket_mb"])
        self.replica.register_comm_hook(turn, play)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4, weight_decay=1e-4)  # the paper's
        self.spans, self.readiness = Spans(turn.spans.traced), Readiness()

    def backward(self) -> None:
        """Compute the gradient of the next batch; `play` gets it."""
        self.optimizer.zero_grad()
        with clock.timed(self.spans, "data", self.device):
            pictures, labels = (part.to(self.device) for part in next(self.batches))
        with clock.timed(self.spans, "forward", self.device):
            loss = cross_entropy(self.replica(pictures), labels) / self.turn.divisor
        began = clock.moment(self.device) if self.turn.is_nobodys else None
        with clock.timed(self.spans, "backward", self.device):
            loss.backward()  # type: ignore[no-untyped-call]
        if began is not None:
            self.readiness.note(self.turn.buckets, [began, *self.turn.ready, clock.moment(self.device)])

    def settle(self) -> None:
        """Let DDP see one backward: then it divides the gradient into the buckets that it keeps, at the next one.

        Of this one there is but one bucket, and what the methods would make for it they would hold ever after.
        """
        self.backward()
        self.turn.buckets = []
        self.spans.take()
        self.spans.take_events()

    def step(self) -> None:
        """Apply what is in the gradient."""
        with clock.timed(self.spans, "step", self.device):
            self.optimizer.step()
