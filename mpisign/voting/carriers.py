"""What carries the words of a bucket from a gradient to its vote and back, as tensors of the gradient's device.

Three kinds: host words by an MPI exchange; words that stay on their device, over torch.distributed (NCCL, Gloo) or an
MPI that takes device memory; and either with the device's words staged through pinned host memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from ..coding import coding, ties
from ..coding.coding import tensor_of
from ..coding.sizes import share_for
from ..coding.ties import Tie
from ..ranks.agreement import agree
from ..ranks.clock import Spans, timed
from .exchange import EXCHANGES, host_zeros

if TYPE_CHECKING:
    from mpi4py import MPI

    from ..coding.bits import Words


class Plan(Protocol):
    """How the words of one bucket are voted on. `words`, int64 (W,), is the caller's to fill; collective."""

    words: Tensor

    def vote(self, step: int, spans: Spans) -> Tensor:
        """Return the vote on `words`, int64 (W,) or (2, W) on their device, valid until the next one."""

    def close(self) -> None:
        """Free what it holds."""


def plan_for(
    comm: Any, exchange: str, W: int, tie: str, seed: int, where: torch.device, takes_device_memory: bool = False
) -> Plan:
    """Return a plan for words of a gradient on the device `where`, over an MPI communicator or a GroupComm. Collective.

    `takes_device_memory`: so does the MPI of `comm`; else, and where the exchange has no form for it, the words go
    through the host.
    """
    plan: Plan
    if isinstance(comm, GroupComm):
        plan = ON_DEVICE[exchange](comm, W, tie, seed, where if comm.backend == "nccl" else torch.device("cpu"))
    elif where.type == "cuda" and takes_device_memory and exchange in ON_DEVICE:
        plan = ON_DEVICE[exchange](_Settled(comm), W, tie, seed, where)
    else:
        plan = _OnHost(comm, exchange, W, tie, seed, pinned=where.type == "cuda")
    return plan if plan.words.device == where else _Staged(plan, where)


def _pinned_zeros(shape: int | tuple[int, ...]) -> Words:
    return coding.words_of(torch.zeros(shape, dtype=torch.int64, pin_memory=True))


class _OnHost:
    """An MPI exchange, with a tensor's face."""

    def __init__(self, comm: MPI.Comm, exchange: str, W: int, tie: str, seed: int, pinned: bool) -> None:
        self._exchange = EXCHANGES[exchange](comm, W, tie, seed, _pinned_zeros if pinned else host_zeros)
        self.words = tensor_of(self._exchange.words)

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
        with timed(spans, "to host", self.words.device):
            self._plan.words.copy_(self.words, non_blocking=True)
        torch.cuda.current_stream(self.words.device).synchronize()
        voted = self._plan.vote(step, spans)
        # By the time that the next vote overwrites what is copied here, the next words have come on the same stream.
        with timed(spans, "to device", self.words.device):
            return voted.to(self.words.device, non_blocking=True)

    def close(self) -> None:
        self._plan.close()


class GroupComm:
    """A process group of torch.distributed with as much of a communicator's face as votes ask for. Collective.

    The ranks are those of `comm`, by which they also agree before a vote.
    """

    def __init__(self, comm: MPI.Comm, backend: str) -> None:
        self._comm, self.backend = comm, backend
        self._group: Any = None
        self.size, self.rank, self.patient = comm.size, comm.rank, True  # torch.distributed waits asleep in any case

    def Dup(self) -> GroupComm:
        """Return a group of its own, with its own order of collectives."""
        new = GroupComm(self._comm.Dup(), self.backend)
        new._group = dist.new_group(backend=self.backend)
        return new

    def Free(self) -> None:
        """Free what Dup made."""
        dist.destroy_process_group(self._group)
        self._comm.Free()

    def allgather(self, thing: Any) -> list[Any]:
        """Gather a Python object from all ranks."""
        return self._comm.allgather(thing)

    def Alltoall(self, sent: Tensor, received: Tensor) -> None:
        """Send each rank its block of `sent`; `received` is of the same size."""
        dist.all_to_all_single(received, sent, group=self._group)

    def Allgather(self, sent: Tensor, received: Tensor) -> None:
        """Gather blocks, one after the other."""
        dist.all_gather_into_tensor(received, sent, group=self._group)


class _Settled:
    """An MPI communicator for device memory: MPI knows nothing of streams, so what is sent must be there."""

    def __init__(self, comm: MPI.Comm) -> None:
        self._comm, self.size, self.rank = comm, comm.size, comm.rank

    def allgather(self, thing: Any) -> list[Any]:
        return self._comm.allgather(thing)

    def Alltoall(self, sent: Tensor, received: Tensor) -> None:
        self._settle(sent)
        self._comm.Alltoall(sent, received)

    def Allgather(self, sent: Tensor, received: Tensor) -> None:
        self._settle(sent)
        self._comm.Allgather(sent, received)

    def _settle(self, sent: Tensor) -> None:
        if sent.is_cuda:
            torch.cuda.current_stream(sent.device).synchronize()


class _OnDevice(ABC):
    """A vote whose words never leave their device: packed, exchanged, voted on and unpacked there."""

    words: Tensor

    def __init__(self, comm: GroupComm | _Settled, W: int, tie: str, seed: int, where: torch.device) -> None:
        agree(comm, (type(self).__name__, W, tie, seed), lambda: ties.check_tie(tie))
        self.comm, self.W, self.tie, self.seed = comm, W, tie, seed
        self.P, self._where, self._rows = comm.size, where, 2 if tie == "zero" else 1
        self._plan()

    def vote(self, step: int, spans: Spans) -> Tensor:
        voted = self._vote(Tie(self.tie, self.seed, step), spans)
        return voted.contiguous() if self._rows == 2 else voted[0]

    @abstractmethod
    def _plan(self) -> None:
        """Allocate `words` and what a vote needs."""

    @abstractmethod
    def _vote(self, tie: Tie, spans: Spans) -> Tensor:
        """Return the vote, int64 (rows, W)."""

    def close(self) -> None:  # noqa: B027 - there are only tensors
        """Free what it holds."""

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int64, device=self._where)

    def _majority(self, ballots: Tensor, tie: Tie, out: Tensor, first_word: int = 0) -> None:
        coding.majority(ballots, tie, out=out if self._rows == 2 else out[0], first_word=first_word)


class _AllGather(_OnDevice):
    """As exchange.AllGather."""

    def _plan(self) -> None:
        self.words, self._all = self._zeros(self.W), self._zeros(self.P, self.W)
        self._voted = self._zeros(self._rows, self.W)

    def _vote(self, tie: Tie, spans: Spans) -> Tensor:
        with timed(spans, "all-gather", self._where):
            self.comm.Allgather(self.words, self._all.view(-1))
        with timed(spans, "vote", self._where):
            self._majority(self._all, tie, self._voted)
        return self._voted


class _AllToAll(_OnDevice):
    """As exchange.AllToAll."""

    def _plan(self) -> None:
        S = share_for(self.W, self.P)
        self._sent, self._received = self._zeros(self.P * S), self._zeros(self.P, S)
        self.words = self._sent[: self.W]
        self._mine, self._all = self._zeros(self._rows, S), self._zeros(self.P, self._rows, S)

    def _vote(self, tie: Tie, spans: Spans) -> Tensor:
        with timed(spans, "all-to-all", self._where):
            self.comm.Alltoall(self._sent, self._received.view(-1))
        with timed(spans, "vote", self._where):
            self._majority(self._received, tie, self._mine, self.comm.rank * self._mine.shape[1])
        with timed(spans, "all-gather", self._where):
            self.comm.Allgather(self._mine.view(-1), self._all.view(-1))
        return self._all.transpose(0, 1).reshape(self._rows, -1)[:, : self.W]


ON_DEVICE: dict[str, type[_OnDevice]] = {"allgather": _AllGather, "alltoall": _AllToAll}
