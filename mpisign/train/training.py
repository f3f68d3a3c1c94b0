"""Training with the vote, or with a rival: the loop."""

# No postponed annotations here: DDP looks at those of its hooks.
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]

from ..methods.method import Ready, Terms
from ..methods.pieces import Pieces
from ..methods.truth import Truth
from ..ranks import agreement
from ..ranks.clock import timed
from ..voting.hook import VoteState
from ..workload import models
from ..workload.data import Pictures, TrainingSampler, loader, seed_of
from ..workload.snapshot import Snapshot
from .broken import Broken
from .evaluation import Evaluation, average_statistics, output_of, sum_of_losses
from .log import of_votes
from .setting import Setting
from .stop import Agreed, Stopped
from .sums import Sums

if TYPE_CHECKING:
    from ..ranks.launch import Comm


CHECKED = 100  # of so many steps one is checked as the bench does
PIECES = 16  # that cover a bucket, one in each step that is checked: copies of all would take memory


@dataclass
class Position:
    """How far a training has come: `seen` counts the pictures of this epoch that all ranks have seen together."""

    epoch: int = 0  # how many are done
    seen: int = 0
    step: int = 0
    losses: float = 0.0  # the sum of those of this epoch's steps
    steps: int = 0  # of this epoch
    judged: int = 0  # of the pictures seen, those that could be decoded
    right: int = 0  # of these, those that the model told, as it was when it saw them
    best: float = -1.0  # the best top-1 of any epoch


def play(training: "Training", bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """Exchange a bucket as the training does: a DDP communication hook."""
    if training.rehearsing:
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done
    training.method.lie(bucket.buffer(), bucket=bucket.index(), step=training.position.step)
    if training.checking:
        training.pieces.keep(training.method, bucket)
    return training.method(bucket)


class Training:
    """A model, its data, and how far they have come. Collective, as all it does.

    `stop` is asked at each step whether to leave a checkpoint and end; `log` gets the lines of rank 0.
    """

    def __init__(
        self, comm: "Comm", setting: Setting, *, method: Ready, terms: Terms, stop: Callable[[], bool],
        log: Callable[[dict[str, Any]], None],
    ) -> None:  # fmt: skip
        config = setting.config
        # What is asked for, and who is asked and told.
        self.comm, self.config, self.device, self.stop, self.log = comm, config, setting.place.device, stop, log
        self.rate = setting.rate
        # How gradients are exchanged.
        self.method, self.spans, self.rehearsing = method, terms.spans, False
        self.vote: VoteState | None = method.state if config.votes else None
        self.terms, self.pieces = terms, Pieces(terms, PIECES, every=CHECKED)
        # The pictures, and how far they were seen.
        self.position, self.pictures = Position(), setting.train
        self.broken = Broken(comm, skip=config.broken == "skip")
        self.sampler = TrainingSampler(setting.train, comm.size, rank=comm.rank, seed=config.seed)
        self.batches = loader(setting.train, self.sampler, batch_size=config.batch_size,
                              workers=config.workers, whole=True, pin=self.device.type == "cuda")  # fmt: skip
        self.evaluation = None if setting.validate is None else Evaluation(
            comm, config, pictures=setting.validate, device=self.device, broken=self.broken, stop=stop)  # fmt: skip
        # The model; what has no gradient is left as it is.
        torch.manual_seed(config.seed)
        self.model = models.build(config.model, config.image_size, classes=len(setting.train.classes)).to(self.device)
        self.idle = self._rehearse(self.model)
        for name, parameter in self.model.named_parameters():
            if name in self.idle:
                parameter.requires_grad_(False)  # else DDP would wait for its gradient
        self.weights = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = self._optimizer()
        self.replica = models.parallel(self.model, config.bucket_mb)
        self.replica.register_comm_hook(self, play)
        self._rehearse(self.replica)  # after it, DDP divides the gradient anew: the coins of ties depend on how

    def _optimizer(self) -> torch.optim.Optimizer:
        """Return what applies the voted signs, the paper's x <- x - lr (sign + decay x), or a mean of gradients."""
        config = self.config
        if config.optimizer == "adamw":
            return torch.optim.AdamW(self.weights, 0.0, (config.momentum, 0.999), weight_decay=config.weight_decay)
        momentum = 0.0 if config.votes else config.momentum  # a voter has its own, before the sign
        return torch.optim.SGD(self.weights, 0.0, momentum, weight_decay=config.weight_decay)

    def _rehearse(self, model: nn.Module) -> list[str]:
        """Pass noise through the model, change nothing, and name the parameters that got no gradient."""
        buffers, size = Snapshot(self.model.buffers()), self.config.image_size
        self.rehearsing = True
        model(torch.randn(2, 3, size, size, device=self.device)).sum().backward()
        self.rehearsing = False
        idle = [name for name, weight in self.model.named_parameters() if weight.requires_grad and weight.grad is None]
        model.zero_grad(set_to_none=True)
        buffers.restore()
        return idle

    @property
    def checking(self) -> bool:
        """Whether the exchange of this step is checked."""
        return self.position.step % self.pieces.every == 0

    def _check(self) -> None:
        """Hold what the exchange of this step has made to what it ought to be.

        Raises:
            Agreed: on all ranks: it is not.

        """
        with self.spans("check"):
            results, evidence = self.pieces.results(), self.pieces.evidence()
            wrong = Truth(self.comm, self.terms).wrong(self.method.method, evidence, results)
        if wrong:
            raise Agreed(
                f"step {self.position.step + 1} (epoch {self.position.epoch + 1}): {wrong} coordinates are wrong after "
                f"the exchange by {self.method.method.name}; that step was not taken"
            )

    def run_epoch(self) -> None:
        """Train to the end of the epoch, and evaluate.

        Raises:
            Stopped: on all ranks: one of them was told to stop; the step that was under way is done.
            Agreed: on all ranks: the loss is not finite, an exchange was wrong, or the replicas differ.
            JobError: on one rank: a picture is broken.

        """
        comm, began, start = self.comm, time.perf_counter(), self.position.seen
        self.sampler.begin(self.position.epoch, -(-start // comm.size))
        self.model.train()
        batches = iter(self.batches)
        for _ in range(len(self.batches)):
            with self.spans("data"):
                pictures, labels, numbers = next(batches)
            self.step(pictures, labels, numbers)
        trained, position = time.perf_counter() - began, self.position
        if not agreement.same_everywhere(comm, (weight.detach().cpu().numpy() for weight in self.weights)):
            raise Agreed(f"epoch {position.epoch + 1}: the replicas differ between ranks")
        result = self.evaluated()
        self.log({
            "type": "epoch", "epoch": position.epoch + 1, "step": position.step,
            "loss": position.losses / position.steps, "train_top1": position.right / max(position.judged, 1),
            **result, "seconds": time.perf_counter() - began, "images_per_s": (position.seen - start) / trained,
            "skipped": self.broken.count(), **self._votes(),
        })  # fmt: skip
        best = max(position.best, result.get("top1", position.best))
        self.position = Position(position.epoch + 1, step=position.step, best=best)

    def evaluated(self) -> dict[str, float]:
        """Return how good the model is; nothing without pictures for validation. Its statistics are averaged."""
        if self.evaluation is not None:
            return self.evaluation.of(self.model)
        average_statistics(self.comm, self.model)
        return {}

    def step(self, pictures: Tensor, labels: Tensor, numbers: Tensor) -> None:
        """Take one step, on this rank's batch.

        Raises:
            Stopped: on all ranks, after the step: one of them was told to stop.
            Agreed: on all ranks: the loss is not finite, or the exchange was wrong; the step was not taken.
            JobError: on one rank: a picture is broken.

        """
        position = self.position
        self.broken.heed(self.pictures, labels, numbers)
        # What the model draws (dropout) follows from the step, so that a resumed run draws the same.
        torch.manual_seed(seed_of(self.config.seed, self.comm.rank, position.step))
        rate = self._set_rate()
        self.optimizer.zero_grad()
        loss, *counts = self._forward(pictures, labels)
        mine, judged, right = torch.stack([loss.detach(), *counts]).tolist()  # the device is waited for once
        finite = math.isfinite(mine)
        sums = Sums(self.comm, stop=self.stop(), not_finite=not finite, loss=mine if finite else 0.0,
                    judged=judged, right=right)  # fmt: skip
        if self.checking:
            self.pieces.begin(self.method, position.step)
        with timed(self.spans, "backward", self.device):
            (loss / self.method.divisor).backward()  # type: ignore[no-untyped-call]
        with self.spans("agree"):
            agreed = sums.wait()
        if agreed["not_finite"]:
            raise Agreed(self._not_finite(mine))
        if self.checking:
            self.pieces.end(self.method)
            self._check()
        with timed(self.spans, "step", self.device):
            self.optimizer.step()
        mean = agreed["loss"] / self.comm.size
        judged, right = int(agreed["judged"]), int(agreed["right"])
        self.position = Position(position.epoch, position.seen + len(numbers) * self.comm.size, position.step + 1,
                                 position.losses + mean, position.steps + 1, position.judged + judged,
                                 position.right + right, position.best)  # fmt: skip
        self.log({"type": "iteration", "step": self.position.step, "epoch": position.epoch + 1, "loss": mean,
                  "train_top1": right / max(judged, 1), "lr": rate, "seconds": self.spans.take(),
                  **self._votes()})  # fmt: skip
        if agreed["stop"]:
            raise Stopped

    def _votes(self) -> dict[str, Any]:
        return {} if self.vote is None else of_votes(self.vote.statistics())

    def _set_rate(self) -> float:
        """Set the learning rate to that of the end of the step: at its beginning the first one's would be 0."""
        pictures = len(self.pictures)
        progress = self.position.epoch + self.position.seen / pictures
        rate = self.rate.at(progress + self.config.batch_size * self.comm.size / pictures)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _forward(self, pictures: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean loss of the pictures that could be decoded, their number, and how many the model told."""
        with timed(self.spans, "data", self.device):
            pictures, labels = pictures.to(self.device), labels.to(self.device)
        with timed(self.spans, "forward", self.device):
            output = output_of(self.replica, pictures, precision=self.config.precision)
            judged = torch.count_nonzero(labels != Pictures.BROKEN)
            right = torch.count_nonzero(output.detach().argmax(1) == labels)
            return sum_of_losses(output, labels) / judged.clamp(min=1), judged, right

    def _not_finite(self, mine: float) -> str:
        """Say on which ranks the loss is not finite. Collective."""
        guilty = [rank for rank, other in enumerate(self.comm.allgather(mine)) if not math.isfinite(other)]
        return (
            f"step {self.position.step + 1} (epoch {self.position.epoch + 1}): the loss is not finite on "
            f"rank{'s' * (len(guilty) > 1)} {', '.join(map(str, guilty))}; that step was not taken"
        )
