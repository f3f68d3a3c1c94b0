"""Votes on tensors: the words of a bucket from its gradient's device to the vote and back.

Words that stay on their device go over torch.distributed (NCCL, Gloo) or an MPI that takes device memory. All others
go over MPI from the host; those of a CUDA device are staged through pinned host memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from ..coding import coding
from ..coding.coding import tensor_of
from ..coding.ties import Tie
from ..ranks import clock, patience
from ..ranks.clock import Spans
from .carriers import Carrier, GroupComm, HostCarrier
from .exchange import Exchange, exchange_class, plan_over

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..coding.bits import Words
    from .roll import Roll

# The name that newer versions of torch deprecate is the only one that older ones have.
_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Plan(Protocol):
    """How the words of one bucket are voted on: see `Exchange`.

    `words` and, where it was asked for, `abstains`, int64 (W,), are the caller's to fill. The roll lies on the host.
    `abstain` gives the result a second row.
    """

    words: Tensor
    abstains: Tensor | None

    @property
    def roll(self) -> Any:
        """What the ranks say of themselves: a Roll, or None without sizes."""

    @property
    def moved(self) -> tuple[int, int]:
        """The bytes that this rank has sent and received in the last vote."""

    @property
    def nobody(self) -> NDArray[np.bool_]:
        """On which parts nobody has voted, bool (parts,)."""

    def vote(self, step: int, spans: Spans) -> Tensor:
        """Return the vote on `words`, int64 (W,) or (2, W) on their device, valid until the next one. Collective."""

    def close(self) -> None:
        """Free what the plan holds. Collective."""


def carrier_for(comm: Any, where: torch.device, exchange: str, *, takes_device_memory: bool = False) -> Carrier:
    """Return what carries words of gradients on the device `where`, for any number of plans of one exchange.

    `comm` is an MPI communicator or a GroupComm. `takes_device_memory`: so does the MPI of `comm`. Where it does not,
    and where the exchange counts on the host, the words go through the host.

    Raises:
        ValueError: an unknown exchange, or a process group that takes neither tensors of the device nor of the host.

    """
    counts = exchange_class(exchange).counts
    if isinstance(comm, GroupComm):
        return GroupCarrier(comm, _group_device(comm, where))
    if where.type == "cuda" and takes_device_memory and not counts:
        return DeviceCarrier(comm, where)
    return HostCarrier(comm, _pinned_zeros) if where.type == "cuda" else HostCarrier(comm)


def _group_device(comm: GroupComm, where: torch.device) -> torch.device:
    """Return where a group takes words of the device `where`: there by NCCL and the like, on the host by Gloo."""
    there = comm.backend_of(where.type)
    if there is not None and (there != "gloo" or where.type == "cpu"):
        return where
    if comm.backend_of("cpu") is None:
        raise ValueError(f"group: its backend {comm.backend} takes no words of {where}; make one with backend gloo")
    return torch.device("cpu")


def plan_for(
    carrier: Carrier, W: int, *, exchange: str, tie: str, seed: int, where: torch.device, sizes: Sequence[int] = (),
    abstain: bool = False, room: Callable[..., Words] | None = None,
) -> Plan:  # fmt: skip
    """Return a plan for words of a gradient on the device `where`, over what `carrier_for` gave for it. Collective.

    `room` gives words of the host for a plan whose words lie there: see `Room.lease`.

    Raises:
        ValueError: as `plan_over` does.

    """
    zeros = None if room is None or where.type != "cpu" else lambda *shape: carrier.put(room(*shape))
    made = plan_over(carrier, W, exchange=exchange, tie=tie, seed=seed, sizes=sizes, abstain=abstain, zeros=zeros)
    plan: Plan = _OnHost(made) if isinstance(carrier, HostCarrier) else made
    return plan if plan.words.device == where else _Staged(plan, where)


def _pinned_zeros(shape: tuple[int, ...]) -> Words:
    return coding.words_of(torch.zeros(shape, dtype=torch.int64, pin_memory=True))


class _OnHost:
    """An exchange of NumPy's words, as tensors that share their memory."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange, self.words = exchange, tensor_of(exchange.words)
        self.abstains = None if exchange.abstains is None else tensor_of(exchange.abstains)

    @property
    def roll(self) -> Roll | None:
        return self._exchange.roll

    @property
    def moved(self) -> tuple[int, int]:
        return self._exchange.moved

    @property
    def nobody(self) -> NDArray[np.bool_]:
        return self._exchange.nobody

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
        self._staged = [(self.words, plan.words)]
        self.abstains: Tensor | None = None
        if plan.abstains is not None:
            self.abstains = torch.zeros_like(plan.abstains, device=where)
            self._staged.append((self.abstains, plan.abstains))

    @property
    def roll(self) -> Any:
        return self._plan.roll

    @property
    def moved(self) -> tuple[int, int]:
        return self._plan.moved

    @property
    def nobody(self) -> NDArray[np.bool_]:
        return self._plan.nobody

    def vote(self, step: int, spans: Spans) -> Tensor:
        with clock.timed(spans, "to host", self.words.device):
            for here, host in self._staged:
                host.copy_(here, non_blocking=True)
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

    def put(self, words: Words) -> Tensor:
        return tensor_of(words).to(self._where)

    def allgather(self, thing: Any) -> list[Any]:
        gathered: list[Any] = self._comm.allgather(thing)
        return gathered

    def majority(self, rows: Tensor, tie: Tie, voted: Tensor, ties: Tensor, first_word: int = 0) -> None:
        coding.vote_into(rows, tie, voted, ties, first_word)

    def timed(self, spans: Spans, name: str) -> AbstractContextManager[None]:
        return clock.timed(spans, name, self._where)

    def close(self) -> None:
        """Nothing to free."""


class DeviceCarrier(_TensorWords):
    """Words on a device over an MPI that takes its memory. MPI knows no streams, so the caller's is waited for."""

    def start_gather(self, mine: Words, rows: Words) -> Callable[[], None]:
        """MPI_Iallgather, on the host."""
        return patience.start_allgather(self._comm, mine, rows)

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

    def start_gather(self, mine: Words, rows: Words) -> Callable[[], None]:
        """All-gather, asynchronous, on the group's device; the lines come to the host when they are waited for."""
        sent, host = self.put(mine), tensor_of(rows)
        received = host if self._where.type == "cpu" else torch.empty_like(host, device=self._where)
        work = _all_gather(received.view(-1), sent, group=self._comm.group, async_op=True)

        def wait() -> None:
            work.wait()
            if received is not host:
                host.copy_(received)

        return wait

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
