"""How a habit trains: by the vote, or plainly, as its twin does. And the tiny things that are learned."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel

import mpisign

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STEPS, RATE, INPUTS = 40, 0.04, 8


class Habit(NamedTuple):
    """A row of the table in docs/ddp.md: what a script does, what becomes of it, and the function that tries it."""

    what: str
    verdict: str  # "works", "refused" or "does not apply"
    note: str  # what follows from it, or the cure
    run: Callable[[Way], float]
    says: re.Pattern[str] | None  # what a refusal, or a warning, must say

    @property
    def name(self) -> str:
        return self.run.__name__


class Table(list[Habit]):
    """A part of the table; its functions are added by decorators."""

    def works(self, what: str, note: str = "", *, warns: str = "") -> Callable[[Any], Any]:
        """Add a habit that learns as well as its plain twin, and warns if `warns` is given."""
        return self._adding(what, "works", note, warns)

    def refused(self, what: str, note: str, *, says: str) -> Callable[[Any], Any]:
        """Add a habit that raises on every rank, with words that name the cure."""
        return self._adding(what, "refused", note, says)

    def does_not_apply(self, what: str, note: str, *, says: str) -> Callable[[Any], Any]:
        """Add a habit that torch itself refuses, with such words, whether there is a vote or not."""
        return self._adding(what, "does not apply", note, says)

    def _adding(self, what: str, verdict: str, note: str, says: str) -> Callable[[Any], Any]:
        def add(run: Callable[[Way], float]) -> Callable[[Way], float]:
            self.append(Habit(what, verdict, note, run, re.compile(says, re.I) if says else None))
            return run

        return add


@dataclass
class Way:
    """One try of a habit on one rank.

    The habit makes its models, optimizers and steps by it, and so is the same script for the vote and for its twin.
    """

    where: Any  # what a VoteState takes: an MPI communicator, or a process group
    voting: bool
    states: list[Any] = field(default_factory=list)
    models: list[nn.Module] = field(default_factory=list)

    @property
    def rank(self) -> int:
        return dist.get_rank()

    @property
    def size(self) -> int:
        return dist.get_world_size()

    @property
    def state(self) -> Any:
        """The last state that was made."""
        return self.states[-1]

    def parallel(self, model: nn.Module, *, vote: dict[str, Any] | None = None, **ddp: Any) -> DistributedDataParallel:
        """Return a model as DDP, voting or not."""
        replica = DistributedDataParallel(model, **ddp)
        if self.voting:
            self.register(replica, **vote or {})
        self.models.append(model)
        return replica

    def register(self, replica: DistributedDataParallel, **vote: Any) -> None:
        """Have the gradients of a model voted on."""
        self.states.append(mpisign.VoteState(vote.pop("where", self.where), **vote))
        replica.register_comm_hook(self.state, mpisign.vote_hook)

    def optimizer(self, parameters: Any, rate: float = RATE) -> torch.optim.Optimizer:
        """Return SGD for signs, AdamW for its twin."""
        return torch.optim.SGD(parameters, rate) if self.voting else torch.optim.AdamW(parameters, rate, foreach=False)

    def mean(self, loss: torch.Tensor) -> float:
        """Return the mean of a number over the ranks."""
        total = loss.detach().double().clone()
        dist.all_reduce(total)
        return total.item() / self.size

    def digest(self) -> str:
        """Return a digest of all weights."""
        made = hashlib.sha256()
        for model in self.models:
            for parameter in model.parameters():
                made.update(parameter.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return made.hexdigest() if self.models else ""

    def close(self) -> None:
        """Close all states. Collective."""
        for state in self.states:
            state.close()


def steps(*optimizers: torch.optim.Optimizer, count: int = STEPS) -> Iterator[int]:
    """Yield the steps' numbers; the rates fall linearly to nothing, so that signs can settle."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    begun = [group["lr"] for group in groups]
    for step in range(count):
        for group, rate in zip(groups, begun, strict=True):
            group["lr"] = rate * (1 - step / count)
        yield step


def network(inputs: int = INPUTS, outputs: int = 1) -> nn.Sequential:
    """Return a small network, the same on each rank."""
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, outputs))


def taught(inputs: torch.Tensor) -> torch.Tensor:
    """Return what is to be learned: targets (n, 1) of mean square 1."""
    teacher = torch.tensor([1.0, -2.0, 0.5, 1.5, -1.0, 0.0, 2.0, -0.5], dtype=inputs.dtype)
    return (inputs @ teacher / teacher.norm())[:, None]


def batch(rank: int, step: int, count: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and targets of a rank and step."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    inputs = torch.randn(count, INPUTS, generator=generator, dtype=torch.float32)
    return inputs, taught(inputs)


def unseen_loss(model: nn.Module, dtype: torch.dtype = torch.float32) -> float:
    """Return the loss on a set that no rank has seen; about 1 for a model that has learned nothing."""
    inputs, targets = batch(99, 99, 256)
    with torch.no_grad():
        return float(mse_loss(model(inputs.to(dtype)).to(torch.float32), targets))


def loss_of(way: Way, replica: nn.Module, step: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return the loss on this rank's batch of a step."""
    inputs, targets = batch(way.rank, step)
    return mse_loss(replica(inputs.to(dtype)), targets.to(dtype))


def nothing() -> None:
    """Do nothing."""


def learn(
    way: Way, replica: nn.Module, optimizer: torch.optim.Optimizer | None = None, *,
    loss: Callable[[int], torch.Tensor] | None = None, behind_backward: Callable[[], Any] = nothing,
    behind_step: Callable[[], Any] = nothing, dtype: torch.dtype | None = None, **counted: int,
) -> float:  # fmt: skip
    """Train in the plain way, but for what is given: the loss of a step, what is done in between. Return the loss."""
    optimizer = optimizer or way.optimizer(replica.parameters())
    dtype = dtype or next(replica.parameters()).dtype
    loss = loss or (lambda step: loss_of(way, replica, step, dtype))
    for step in steps(optimizer, **counted):
        optimizer.zero_grad()
        loss(step).backward()
        behind_backward()
        optimizer.step()
        behind_step()
    return unseen_loss(replica.module if isinstance(replica, DistributedDataParallel) else replica, dtype)
