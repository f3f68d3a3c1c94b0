"""Votes on tensors: the words of a bucket from its gradient's device to the vote and back.

Words that stay on their device go over torch.distributed (NCCL, Gloo) or an MPI that takes device memory. All others
go over MPI from the host; those of a CUDA device are staged through pinned host memory.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from ..coding import coding
from ..coding.coding import tensor_of
from ..coding.ties import Tie
from ..ranks import clock
from ..ranks.clock import Spans
from .carriers import Carrier, GroupComm, HostCarrier
from .exchange import Exchange, exchange_class, plan_over

if TYPE_CHECKING:
    from ..coding.bits import Words

# The name that newer versions of torch deprecate is the only one that older ones have.
_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Plan(Protocol):
    """How the words of one bucket are voted on. `words`, int64 (W,), is the caller's to fill."""

    words: Tensor

    def vote(self, step: int, spans: Spans) -> Tensor:
        """Return the vote on `words`, int64 (W,) or (2, W) on their device, valid until the next one. Collective."""

    def close(self) -> None:
        """Free what the plan holds. Collective."""


def plan_for(
    comm: Any, exchange: str, *, W: int, tie: str, seed: int, where: torch.device, takes_device_memory: bool = False
) -> Plan:
    """Return a plan for words of a gradient on the device `where`, over an MPI communicator or a GroupComm. Collective.

    `takes_device_memory`: so does the MPI of `comm`. Where it does not, and where the exchange counts on the host, the
    words go through the host.

    Raises:
        ValueError: on all ranks, if they ask for different votes, or for an exchange that their carrier has not.

    """
    on_device = where.type == "cuda" and takes_device_memory and not exchange_class(exchange).counts
    plan: Plan
    if isinstance(comm, GroupComm):
        carrier: Carrier = GroupCarrier(comm, where if comm.backend == "nccl" else torch.device("cpu"))
        plan = plan_over(carrier, W, exchange=exchange, tie=tie, seed=seed)
    elif on_device:
        plan = plan_over(DeviceCarrier(comm, where), W, exchange=exchange, tie=tie, seed=seed)
    else:
        host = HostCarrier(comm, _pinned_zeros) if where.type == "cuda" else HostCarrier(comm)
        plan = _OnHost(plan_over(host, W, exchange=exchange, tie=tie, seed=seed))
    return plan if plan.words.device == where else _Staged(plan, where)


def _pinned_zeros(shape: tuple[int, ...]) -> Words:
    return coding.words_of(torch.zeros(shape, dtype=torch.int64, pin_memory=True))


class _OnHost:
    """An exchange of NumPy's words, as tensors that share their memory."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange, self.words = exchange, tensor_of(exchange.words)

    def vote(self, step: int, spans: Spans) -> Tensor:
        return tensor_of(self._exchange.vote(step, spans))

    def close(self) -> None:
        self._exchange.close()


class _Staged:
    """A plan on the host for words on a CUDA device.

    The copies are queued on the caller's stream, and only that stream is waited for: backward goes on beside it.
    """

    def __init__(self, plan: Plan, where: torch.device) -> None:
        self._plan = plan
        self.words = torch.zeros_like(plan.words, device=where)

    def vote(self, step: int, spans: Spans) -> Tensor:
        with clock.timed(spans, "to host", self.words.device):
            self._plan.words.copy_(self.words, non_blocking=True)
        torch.cuda.current_stream(self.words.device).synchronize()
        voted = self._plan.vote(step, spans)
        # By the time that the next vote overwrites what is copied here, the next words have come on the same stream.
        with clock.timed(spans, "to device", self.words.device):
            return voted.to(self.words.device, non_blocking=True)

    def close(self) -> None:
        self._plan.close()


class _TensorWords:
    """What carriers of tensors on one device have in common. Words are int64: see `coding`."""

    def __init__(self, comm: Any, where: torch.device) -> None:
        self._comm, self._where = comm, where
        self.size: int = comm.size
        self.rank: int = comm.rank

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int64, device=self._where)

    def allgather(self, thing: Any) -> list[Any]:
        gathered: list[Any] = self._comm.allgather(thing)
        return gathered

    def majority(self, rows: Tensor, tie: Tie, voted: Tensor, ties: Tensor, first_word: int = 0) -> None:
        coding.vote_into(rows, tie, voted, ties, first_word)

    def timed(self, spans: Spans, name: str) -> AbstractContextManager[None]:
        return clock.timed(spans, name, self._where)


class DeviceCarrier(_TensorWords):
    """Words on a device over an MPI that takes its memory. MPI knows no streams, so the caller's is waited for."""

    def all_to_all(self, sent: Tensor, received: Tensor) -> None:
        """MPI_Alltoall."""
        self._settle()
        self._comm.Alltoall(sent, received)

    def complete(self, rows: Tensor) -> None:
        """MPI_Allgather in place."""
        from mpi4py import MPI

        self._settle()
        self._comm.Allgather(MPI.IN_PLACE, rows)

    def gather(self, words: Tensor, rows: Tensor) -> None:
        """MPI_Gather to rank 0."""
        self._settle()
        self._comm.Gather(words, None if self.rank else rows, root=0)

    def broadcast(self, words: Tensor) -> None:
        """MPI_Bcast from rank 0."""
        self._settle()
        self._comm.Bcast(words, root=0)

    def _settle(self) -> None:
        """Wait for what was queued to write the words."""
        if self._where.type == "cuda":
            torch.cuda.current_stream(self._where).synchronize()


class GroupCarrier(_TensorWords):
    """Words over the process group that `GroupComm.Dup` made: on the device with NCCL, on the host with Gloo."""

    def all_to_all(self, sent: Tensor, received: Tensor) -> None:
        """All to all, in one call."""
        dist.all_to_all_single(received.view(-1), sent, group=self._comm.group)

    def complete(self, rows: Tensor) -> None:
        """All-gather, in place."""
        _all_gather(rows.view(-1), rows[self.rank].view(-1), group=self._comm.group)

    def gather(self, words: Tensor, rows: Tensor) -> None:
        """Gather to the group's rank 0."""
        into = None if self.rank else list(rows.unbind())
        dist.gather(words, into, dist.get_global_rank(self._comm.group, 0), group=self._comm.group)

    def broadcast(self, words: Tensor) -> None:
        """Broadcast from the group's rank 0."""
        dist.broadcast(words, dist.get_global_rank(self._comm.group, 0), group=self._comm.group)
