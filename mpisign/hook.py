"""The vote as a communication hook of DistributedDataParallel.

With the voted signs as the "gradient", `torch.optim.SGD(lr, weight_decay=w)` is the paper's update
x <- x - lr * (sign(vote) + w * x); the momentum is each worker's own, before the sign, and lives in VoteState.
"""

# No postponed annotations here: DDP looks at those of its hooks.
from collections.abc import Iterable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.utils.weak import WeakTensorKeyDictionary

from . import bits, votes
from .adversary import ADVERSARIES
from .exchange import EXCHANGES, Exchange, agree, exchange_class
from .spans import Spans

if TYPE_CHECKING:
    from mpi4py import MPI


class Bucket(Protocol):
    """What is asked of a bucket: torch.distributed.GradBucket has it."""

    def index(self) -> int: ...
    def buffer(self) -> Tensor: ...
    def parameters(self) -> list[Tensor]: ...


class VoteState:
    """What a worker keeps between steps: its momentum, its exchange plans, and how it votes.

    `comm` is duplicated (collective). `momentum` is beta in m <- beta m + (1 - beta) g; 0 votes on the gradient itself
    (signSGD, without "um"). `adversary` names what this rank sends instead (see ADVERSARIES); None is honest.
    `seed` must be the same on all ranks. `spans` collects the times of pack, vote, unpack and each collective.

    Raises:
        ValueError: on all ranks, if on any: an unknown exchange, tie rule or adversary, momentum outside [0, 1), too
            low a thread level of MPI, or ranks that ask for different votes.

    """

    def __init__(
        self, comm: "MPI.Comm", momentum: float = 0.9, exchange: str = "alltoall", tie: str = "positive",
        adversary: str | None = None, seed: int = 0, spans: Spans | None = None,
    ) -> None:  # fmt: skip
        agree(comm, (exchange, tie, momentum, seed), lambda: _check(momentum, exchange, tie, adversary))
        self._exchange = EXCHANGES[exchange]
        self.momentum, self.tie, self.adversary, self.seed = momentum, tie, adversary, seed
        self.spans = spans or Spans()
        self.steps = 0
        self.queue: list[tuple[Bucket, torch.futures.Future[Tensor]]] = []
        self._comm = comm.Dup()
        self._plans: dict[int, Exchange] = {}
        # Momentum lies flat, bucket by bucket; a parameter's view outlives a new division into buckets.
        self._buckets: dict[int, tuple[Tensor, Sequence[Tensor]]] = {}
        self._views: MutableMapping[Tensor, Tensor] = WeakTensorKeyDictionary()  # by parameter

    def close(self) -> None:
        """Free the plans and the communicator. Collective."""
        for plan in self._plans.values():
            plan.close()
        self._plans.clear()
        self._comm.Free()

    def share_momentum(self, other: "VoteState") -> None:
        """Use the other's momentum from now on: methods that are compared start from the same."""
        self._buckets, self._views = other._buckets, other._views

    def state_dict(self, parameters: Iterable[Tensor]) -> dict[str, Any]:
        """Return this rank's momentum, one tensor a parameter (None before its first step), and the step count."""
        views = [self._views.get(parameter) for parameter in parameters]
        return {"steps": self.steps, "momentum": [None if view is None else view.clone() for view in views]}

    def load_state_dict(self, state: dict[str, Any], parameters: Iterable[Tensor]) -> None:
        """Take over what `state_dict` gave for the same parameters in the same order."""
        self.steps = state["steps"]
        self._buckets.clear()
        self._views.clear()
        for parameter, momentum in zip(parameters, state["momentum"], strict=True):
            if momentum is not None:
                self._views[parameter] = momentum.detach().to("cpu", torch.float32).reshape(-1).clone()

    def momentum_of(self, bucket: Bucket) -> Tensor:
        """Return the momentum of a bucket, float32 (n,), a view that `vote_bucket` changes in place."""
        index, parameters = bucket.index(), bucket.parameters()
        if index in self._buckets:
            flat, parts = self._buckets[index]
            views = [self._views.get(parameter) for parameter in parameters]
            if len(views) == len(parts) and all(view is part for view, part in zip(views, parts, strict=True)):
                return flat
        flat = torch.zeros(bucket.buffer().numel())
        parts = torch.split(flat, [parameter.numel() for parameter in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            if parameter in self._views:
                part.copy_(self._views[parameter])
            self._views[parameter] = part
        self._buckets[index] = flat, parts
        return flat

    def _plan_for(self, index: int, n: int) -> Exchange:
        W = bits.words_for(n)
        plan = self._plans.get(index)
        if plan is None or plan.W != W:
            if plan is not None:
                plan.close()
            plan = self._plans[index] = self._exchange(self._comm, W, self.tie, self.seed)
        return plan

    def tie_step(self, index: int) -> int:
        """Return the step that seeds the coins of a bucket: each bucket of each step has its own."""
        return (self.steps << 16) + index

    def betray(self, words: bits.Words, n: int, index: int) -> None:
        """Let the adversary, if this rank is one, replace the words of a bucket of n coordinates in place."""
        if self.adversary is not None:
            coins = np.random.default_rng([self.seed, self._comm.rank, self.tie_step(index)])
            ADVERSARIES[self.adversary](words, n, coins)

    def vote_bucket(self, bucket: Bucket) -> Tensor:
        """Replace a bucket's gradient by the voted signs, in place: momentum, pack, adversary, exchange, unpack."""
        buffer, index = bucket.buffer(), bucket.index()
        if buffer.dtype != torch.float32:
            raise ValueError(f"bucket: gradients must be float32, got {buffer.dtype}")
        gradient = buffer.cpu()  # the buffer itself where it lives on the CPU
        n = gradient.numel()
        plan = self._plan_for(index, n)
        momentum = self.momentum_of(bucket) if self.momentum else None
        with self.spans("pack"):
            if momentum is None:
                bits.pack(gradient, plan.words)
            else:
                bits.momentum_pack(momentum, gradient, self.momentum, plan.words)
            self.betray(plan.words, n, index)
        voted = plan.vote(self.tie_step(index), self.spans)
        with self.spans("unpack"):
            bits.unpack(voted, n, out=gradient)
            if buffer.data_ptr() != gradient.data_ptr():
                buffer.copy_(gradient)
        return buffer


def _check(momentum: float, exchange: str, tie: str, adversary: str | None) -> None:
    from mpi4py import MPI

    exchange_class(exchange)
    votes.check_tie(tie)
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum: must be in [0, 1), got {momentum}")
    if adversary is not None and adversary not in ADVERSARIES:
        raise ValueError(f"adversary: unknown name {adversary!r}, choose from {', '.join(ADVERSARIES)}")
    if MPI.Query_thread() < MPI.THREAD_SERIALIZED:  # on CUDA, hooks are called from a thread of autograd's
        raise ValueError("comm: MPI must be started with thread level serialized or multiple")


def vote_hook(state: VoteState, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """Vote on a bucket: `model.register_comm_hook(state, vote_hook)`.

    The serial schedule, as in the paper: buckets wait for the last one, then all are exchanged in their order.
    """
    future: torch.futures.Future[Tensor] = torch.futures.Future()
    if bucket.index() == 0:
        state.queue = []  # what a backward that raised may have left
    state.queue.append((bucket, future))
    if bucket.is_last():
        queue, state.queue = state.queue, []
        for held, promised in queue:
            promised.set_result(state.vote_bucket(held))
        state.steps += 1
    return future
