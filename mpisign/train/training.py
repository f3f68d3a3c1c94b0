"""Training with the vote, or with a rival: the loop, its evaluation, and what a checkpoint holds."""

# No postponed annotations here: DDP looks at those of its hooks.
import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.nn.functional import cross_entropy

from ..methods import rivals
from ..methods.catalogue import VOTES
from ..ranks import agreement, launch, patience
from ..ranks.clock import Spans, timed
from ..ranks.place import Place
from ..voting.adversary import Traitor
from ..voting.carriers import GroupComm
from ..voting.hook import VoteState, vote_hook
from ..workload import models
from ..workload.data import Pictures, TrainingSampler, ValidationSampler, loader, seed_of
from . import checkpoint
from .recipe import Recipe

if TYPE_CHECKING:
    from mpi4py import MPI


class Agreed(launch.JobError):
    """Raised on all ranks at the same place: one of them is to tell it."""


@dataclass
class Position:
    """How far a training has come: `seen` counts the pictures of this epoch that all ranks have seen together."""

    epoch: int = 0
    seen: int = 0
    step: int = 0
    losses: float = 0.0  # the sum of those of this epoch's steps
    steps: int = 0  # of this epoch


def play(training: "Training", bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """Exchange a bucket as the training does: a DDP communication hook."""
    if training.rehearsing:
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done
    if training.state is None:
        rivals.betray(training.traitor, bucket.buffer(), bucket.index(), training.position.step)
    hook, state = training.hook
    return hook(state, bucket)


class Training:
    """A model, its data, and how far they have come. Collective, as all it does.

    `stop` is asked at each iteration whether to leave a checkpoint and end; `log` gets the lines of rank 0.
    """

    def __init__(
        self, comm: "MPI.Comm", config: Recipe, place: Place, train: Pictures, validate: Pictures, *,
        adversary: str | None, stop: Callable[[], bool], log: Callable[[dict[str, Any]], None],
        held: contextlib.ExitStack,
    ) -> None:  # fmt: skip
        self.comm, self.config, self.device, self.stop, self.log = comm, config, place.device, stop, log
        self.position, self.spans, self.rehearsing = Position(), Spans(), False
        self.train, self.skipped = train, set[str]()
        self.sampler = TrainingSampler(train, comm.size, comm.rank, config.seed)
        pin = self.device.type == "cuda"
        self.batches = loader(train, self.sampler, config.batch_size, config.workers, whole=True, pin=pin)
        every = ValidationSampler(validate, comm.size, comm.rank)
        self.validation = loader(validate, every, config.batch_size, config.workers, whole=False, pin=pin)
        most = math.ceil(len(validate) / comm.size)
        self.validation_steps = math.ceil(most / config.batch_size)  # of the rank that has most
        torch.manual_seed(config.seed)
        self.model = models.build(config.model, config.image_size, len(train.classes)).to(self.device)
        self.state: VoteState | None = None
        self.traitor = None if adversary is None else Traitor(adversary, config.seed, comm.rank)
        self.hook: tuple[rivals.Hook, Any]
        if config.votes:
            exchange, backend = VOTES[config.method]
            carrier: Any = GroupComm(comm, backend) if backend else comm
            self.state = VoteState(
                carrier, config.momentum, exchange=exchange, tie=config.tie, adversary=adversary, seed=config.seed,
                spans=self.spans, schedule=config.schedule, takes_device_memory=place.takes_device_memory,
            )  # fmt: skip
            held.callback(self.state.close)
            self.hook = vote_hook, self.state
        else:
            self.hook = rivals.BASELINES[config.method].hook(comm, held)
            if isinstance(self.hook[1], patience.Patient):
                self.hook[1].patient = True
        self.idle = self._rehearse(self.model)
        for parameter in self._parameters_of(self.idle):
            parameter.requires_grad_(False)  # else their gradient of 0 would vote +1, and they would drift
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
        momentum = 0.0 if self.state else config.momentum  # a voter has its own, before the sign
        return torch.optim.SGD(self.weights, 0.0, momentum, weight_decay=config.weight_decay)

    def _rehearse(self, model: nn.Module) -> list[str]:
        """Pass noise through the model, change nothing, and name the parameters that got no gradient."""
        kept = [buffer.clone() for buffer in self.model.buffers()]
        size = self.config.image_size
        self.rehearsing = True
        model(torch.randn(2, 3, size, size, device=self.device)).sum().backward()
        self.rehearsing = False
        idle = [name for name, weight in self.model.named_parameters() if weight.requires_grad and weight.grad is None]
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, before in zip(self.model.buffers(), kept, strict=True):
                buffer.copy_(before)
        return idle

    def _parameters_of(self, names: list[str]) -> Iterator[nn.Parameter]:
        return (parameter for name, parameter in self.model.named_parameters() if name in names)

    def run_epoch(self) -> bool:
        """Train to the end of the epoch and evaluate; return False if asked to stop before that was done.

        Raises:
            Agreed: on all ranks: the loss is not finite, or the replicas differ.
            mpi.JobError: on one rank: a picture is broken.

        """
        comm, began, start = self.comm, time.perf_counter(), self.position.seen
        self.sampler.begin(self.position.epoch, -(-start // comm.size))
        images = 0
        self.model.train()
        batches = iter(self.batches)
        for _ in range(len(self.batches)):
            with self.spans("data"):
                pictures, labels, numbers = next(batches)
            stopped = self._iterate(pictures, labels, numbers)
            images += len(numbers) * comm.size
            if stopped:
                return False
        trained = time.perf_counter() - began
        identical = agreement.same_everywhere(comm, (weight.detach().cpu().numpy() for weight in self.weights))
        if not identical:
            raise Agreed(f"epoch {self.position.epoch + 1}: the replicas differ between ranks")
        result = self._evaluate()
        if result is None:
            return False
        skipped = len(set().union(*comm.allgather(self.skipped)))
        self.log({
            "type": "epoch", "epoch": self.position.epoch, "step": self.position.step,
            "loss": self.position.losses / self.position.steps, **result, "seconds": time.perf_counter() - began,
            "images_per_s": images / trained, "skipped": skipped,
        })  # fmt: skip
        self.position = Position(self.position.epoch + 1, step=self.position.step)
        return True

    def _iterate(self, pictures: Tensor, labels: Tensor, numbers: Tensor) -> bool:
        """Take one step; return whether to stop."""
        config, position = self.config, self.position
        self._heed_broken(self.train, labels, numbers)
        # What the model draws (dropout) follows from the step, so that a resumed run draws the same.
        torch.manual_seed(seed_of(config.seed, self.comm.rank, position.step))
        progress = position.epoch + position.seen / len(self.train)
        # At the end of the step, for at its beginning the first one's would be 0.
        rate = config.rate(progress + config.batch_size * self.comm.size / len(self.train))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        with timed(self.spans, "data", self.device):
            pictures, labels = pictures.to(self.device), labels.to(self.device)
        with timed(self.spans, "forward", self.device):
            loss = self._loss(self._output(self.replica, pictures), labels)
            mine = float(loss.detach())
        # Agreed on while backward runs: who is to stop, whose loss is not finite, and the loss.
        told = np.array([self.stop(), not math.isfinite(mine), mine if math.isfinite(mine) else 0.0])
        agreed = self._sum(told)
        with timed(self.spans, "backward", self.device):
            loss.backward()  # type: ignore[no-untyped-call]
        with self.spans("agree"):
            agreed()
        if told[1]:
            guilty = [rank for rank, other in enumerate(self.comm.allgather(mine)) if not math.isfinite(other)]
            raise Agreed(
                f"step {position.step + 1} (epoch {position.epoch + 1}): the loss is not finite on "
                f"rank{'s' * (len(guilty) > 1)} {', '.join(map(str, guilty))}; that step was not taken"
            )
        with timed(self.spans, "step", self.device):
            self.optimizer.step()
        mean = float(told[2]) / self.comm.size
        self.position = Position(position.epoch, position.seen + len(numbers) * self.comm.size, position.step + 1,
                                 position.losses + mean, position.steps + 1)  # fmt: skip
        self.log({"type": "iteration", "step": self.position.step, "epoch": position.epoch, "loss": mean, "lr": rate,
                  "seconds": self.spans.take()})  # fmt: skip
        return bool(told[0])

    def _loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross entropy of the pictures that could be decoded."""
        total = cross_entropy(output, labels, ignore_index=Pictures.BROKEN, reduction="sum")
        return total / torch.count_nonzero(labels != Pictures.BROKEN).clamp(min=1)

    def _sum(self, values: "np.ndarray[Any, Any]") -> Callable[[], None]:
        """Start summing the values of all ranks in place; return what waits for it."""
        from mpi4py import MPI

        request = self.comm.Iallreduce(MPI.IN_PLACE, values)

        def wait() -> None:
            request.Wait()

        return wait

    def _heed_broken(self, pictures: Pictures, labels: Tensor, numbers: Tensor) -> None:
        for number in numbers[labels == Pictures.BROKEN].tolist():
            fault = pictures.fault(number)
            if self.config.broken == "stop":
                raise launch.JobError(f"{fault} (--broken skip leaves such pictures out)")
            if fault not in self.skipped:
                self.skipped.add(fault)
                print(f"mpisign.train: rank {self.comm.rank} leaves out {fault}", file=sys.stderr, flush=True)

    @torch.no_grad()
    def _evaluate(self) -> dict[str, float] | None:
        """Return the loss and accuracies on all ranks' pictures for validation; None if asked to stop meanwhile."""
        self._average_statistics()
        self.model.eval()
        sums = np.zeros(5)  # stop, pictures, loss, first right, among the first five
        batches, five = iter(self.validation), min(5, len(self.train.classes))
        for _ in range(self.validation_steps):
            batch = next(batches, None)
            asked = np.array([float(self.stop())])
            agreed = self._sum(asked)
            if batch is not None:
                self._heed_broken(self.validation.dataset, batch[1], batch[2])
                sums[1:] += self._scores(batch[0].to(self.device), batch[1].to(self.device), five)
            agreed()
            if asked[0]:
                return None
        self._sum(sums)()
        _, count, loss, first, among = sums
        return {"validation_loss": loss / max(count, 1), "top1": first / max(count, 1), "top5": among / max(count, 1),
                "validated": count}  # fmt: skip

    def _scores(self, pictures: Tensor, labels: Tensor, five: int) -> "np.ndarray[Any, Any]":
        """Return a batch's number of pictures, sum of losses, and how many were right first and among the first."""
        output = self._output(self.model, pictures)
        right = output.topk(five).indices == labels[:, None]
        known = labels != Pictures.BROKEN
        loss = cross_entropy(output, labels, ignore_index=Pictures.BROKEN, reduction="sum")
        return np.array([int(known.sum()), float(loss), int(right[:, 0].sum()), int(right.sum())], float)

    def _output(self, model: nn.Module, pictures: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            output: Tensor = model(pictures)
        return output.float()

    def _average_statistics(self) -> None:
        """Set BatchNorm's running means and variances to their mean over the ranks.

        Each rank keeps its own while it trains. (The mean of the variances leaves out how far the means lie apart.)
        """
        buffers = [buffer for buffer in self.model.buffers() if buffer.is_floating_point()]
        if buffers:
            flat = torch.cat([buffer.reshape(-1) for buffer in buffers]).double().cpu().numpy()
            self._sum(flat)()
            means = torch.split(torch.from_numpy(flat / self.comm.size), [buffer.numel() for buffer in buffers])
            for buffer, mean in zip(buffers, means, strict=True):
                buffer.copy_(mean.reshape(buffer.shape))

    def save(self, folder: Path) -> str | None:
        """Write a checkpoint; return None, or on all ranks why it failed."""
        common = {
            "config": asdict(self.config), "position": asdict(self.position), "classes": self.train.classes,
            "pictures": self.train.fingerprint(),
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip
        own: dict[str, Any] = {"buffers": [buffer.cpu() for buffer in self.model.buffers()]}
        if self.state is not None:
            own["vote"] = self.state.state_dict(self.weights)
        return checkpoint.write(self.comm, folder, self.position.step, common, own, self.config.keep)

    def load(self, path: Path) -> list[str]:
        """Go on from a checkpoint; return what a user has to know of it.

        Raises:
            ValueError: on all ranks: it is none, or one of another model; nothing was changed.

        """
        common, own = checkpoint.read(self.comm, path)
        fault = _misfit(common, self.config, self.train.classes, self.model.state_dict())
        if fault:
            raise ValueError(f"resume: {path} {fault}")
        self.model.load_state_dict(common["model"])
        asked_for = [{key: value for key, value in group.items() if key != "params"}
                     for group in self.optimizer.param_groups]  # fmt: skip
        self.optimizer.load_state_dict(common["optimizer"])
        for group, options in zip(self.optimizer.param_groups, asked_for, strict=True):
            group.update(options)  # weight decay and momentum are this run's
        self.position = Position(**common["position"])
        if own is not None:
            for buffer, kept in zip(self.model.buffers(), own["buffers"], strict=True):
                buffer.copy_(kept)
        notes, before, now = [], common["ranks"], self.comm.size
        if self.state is not None:
            if own is not None and "vote" in own:
                self.state.load_state_dict(own["vote"], self.weights)
            self.state.steps = self.position.step
            if now < before:
                notes.append(f"it was left by {before} ranks: the momentum of ranks {now} to {before - 1} is lost")
            elif now > before:
                notes.append(f"it was left by {before} ranks: ranks {before} to {now - 1} begin without momentum")
        if tuple(common["pictures"]) != self.train.fingerprint():
            notes.append("it was trained on other pictures, or under other names")
        then, asked = common["config"], asdict(self.config)
        changed = [name for name in asked if name not in _MAY_CHANGE and then.get(name) != asked[name]]
        notes += [f"{name} was {then.get(name)}, is now {asked[name]}" for name in changed]
        return notes


_MAY_CHANGE = ("resume", "output", "data", "workers", "keep", "checkpoint_every")


def _misfit(common: dict[str, Any], config: Recipe, classes: list[str], weights: dict[str, Tensor]) -> str | None:
    """Say why a checkpoint can't be of this training, or None."""
    kept = common["model"]
    if common["config"]["model"] != config.model:
        return f"holds {common['config']['model']}, not {config.model}"
    if (common["config"]["method"] in VOTES) != config.votes:
        return f"was trained by {common['config']['method']}, whose state is of no use to {config.method}"
    if common["config"]["optimizer"] != config.optimizer:
        return f"was trained by {common['config']['optimizer']}, whose state is of no use to {config.optimizer}"
    if common["classes"] != classes:
        return f"was trained on other classes: {len(common['classes'])} of them, here {len(classes)}, or other names"
    for name, weight in weights.items():
        if name not in kept or kept[name].shape != weight.shape:
            there = f"of shape {list(kept[name].shape)}" if name in kept else "missing"
            return f"holds another model: {name} is {there}, here of shape {list(weight.shape)}"
    return None
