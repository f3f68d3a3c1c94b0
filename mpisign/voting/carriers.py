"""What carries words between ranks: the few operations that an exchange is made of.

A carrier belongs to P ranks and to one kind of memory. There are four: words of the host over MPI (`HostCarrier`,
here); words on a device over an MPI that takes device memory, and over a process group of torch.distributed
(`tensors`); and threads of one process, by which the exchanges are proved (`threads`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from ..coding.ties import Tie
from ..ranks import nodes, patience
from ..ranks.clock import Spans

if TYPE_CHECKING:
    from mpi4py import MPI

    from ..coding.bits import Words

# Words as their carrier keeps them: uint64 of NumPy on the host, an int64 tensor elsewhere. Always contiguous.
Buffer: TypeAlias = Any


class Carrier(Protocol):
    """P ranks and the collectives between them. All ranks call the same ones in the same order."""

    @property
    def size(self) -> int: ...
    @property
    def rank(self) -> int: ...

    def zeros(self, *shape: int) -> Buffer:
        """Return new words of a shape, all 0."""

    def put(self, words: Words) -> Buffer:
        """Return words of the host where the carrier keeps its own; they may share the memory."""

    def allgather(self, thing: Any) -> list[Any]:
        """Gather a Python object from each rank, for agreement before a vote."""

    def start_gather(self, mine: Words, rows: Words) -> Callable[[], None]:
        """Start an all-gather of `mine`, (w,), in `rows`, (P, w), and return what waits for it; both lie on the host.

        It is under way beside other collectives, which are started after it and end before it is waited for.
        """

    def all_to_all(self, sent: Buffer, received: Buffer) -> None:
        """Send block r of `sent`, (P * S,), to rank r; row r of `received`, (P, S), is rank r's block for this one."""

    def complete(self, rows: Buffer) -> None:
        """All-gather in place: each rank has filled its own row of `rows`, (P, ...), and receives all others."""

    def gather(self, words: Buffer, rows: Buffer) -> None:
        """Gather all ranks' `words`, (W,), in `rows`: (P, W) on rank 0, (0, W) on the others."""

    def broadcast(self, words: Buffer) -> None:
        """Set `words` to those of rank 0."""

    def majority(self, rows: Buffer, tie: Tie, voted: Buffer, ties: Buffer, first_word: int = 0) -> None:
        """Set `voted` and `ties` to the majority of `rows`, on this rank alone: see `counting.vote_into`."""

    def timed(self, spans: Spans, name: str) -> AbstractContextManager[None]:
        """Add the block's time to a span."""

    def close(self) -> None:
        """Free what the carrier has made, not what it was made of. Collective; twice is harmless."""


class Counters(Protocol):
    """Counters of K planes, uint64 (G, K, BLOCK), and their sum over the ranks of a carrier."""

    def sum(self, planes: Words) -> None:
        """Set `planes` to the sum of all ranks' `planes`, in place. Collective."""


class CountingCarrier(Carrier, Protocol):
    """A carrier of host words that merges words and counters too, and knows which ranks share a node."""

    def intersect(self, words: Words) -> None:
        """Set `words`, (W,), to the bits that are 1 on all ranks, in place."""

    def counters(self, K: int) -> Counters:
        """Return what sums counters of K planes over the ranks, made once a carrier and freed by `close`."""

    def by_node(self) -> tuple[CountingCarrier, CountingCarrier]:
        """Return the carrier of this rank's node and that of the nodes' first ranks, made once and freed by `close`.

        On a rank that is not the first of its node, the second one is not to be used. Collective.
        """


class Booked:
    """A carrier whose collectives are booked: `moved` are the bytes sent and received by this rank.

    They are what a collective delivers, not how it is relayed: of blocks m, an all-to-all or all-gather sends (P - 1) m
    and receives as much, a gather or broadcast moves (P - 1) m at its root and m elsewhere. An all-reduce has
    2 (P - 1) / P m both ways, the least that is possible: what an MPI really sends for it is not known.
    `network.traffic` books the same beforehand.
    """

    def __init__(self, carrier: Any, moved: list[int] | None = None) -> None:
        self._carrier, self.moved = carrier, [0, 0] if moved is None else moved

    def __getattr__(self, name: str) -> Any:
        return getattr(self._carrier, name)

    def book(self, sent: int, received: int) -> None:
        """Add so many bytes."""
        self.moved[0] += sent
        self.moved[1] += received

    def book_merge(self, whole: int) -> None:
        """Add an all-reduce of so many bytes."""
        least = 2 * (self.size - 1) * whole // self.size
        self.book(least, least)

    def start_gather(self, mine: Words, rows: Words) -> Callable[[], None]:
        self._book_others(rows.nbytes)
        wait: Callable[[], None] = self._carrier.start_gather(mine, rows)
        return wait

    def all_to_all(self, sent: Buffer, received: Buffer) -> None:
        self._book_others(sent.nbytes)
        self._carrier.all_to_all(sent, received)

    def complete(self, rows: Buffer) -> None:
        self._book_others(rows.nbytes)
        self._carrier.complete(rows)

    def gather(self, words: Buffer, rows: Buffer) -> None:
        self._book_rooted(0, words.nbytes)
        self._carrier.gather(words, rows)

    def broadcast(self, words: Buffer) -> None:
        self._book_rooted(words.nbytes, 0)
        self._carrier.broadcast(words)

    def intersect(self, words: Words) -> None:
        self.book_merge(words.nbytes)
        self._carrier.intersect(words)

    def counters(self, K: int) -> BookedCounters:
        """Return counters whose sums are booked."""
        return BookedCounters(self, self._carrier.counters(K))

    def by_node(self) -> tuple[Booked, Booked]:
        """Return both parts, which book here."""
        node, leaders = self._carrier.by_node()
        return Booked(node, self.moved), Booked(leaders, self.moved)

    def _book_others(self, whole: int) -> None:
        others = whole * (self.size - 1) // self.size
        self.book(others, others)

    def _book_rooted(self, outward: int, inward: int) -> None:
        """Book what goes from the root to each other rank, and what comes from there."""
        others = self.size - 1
        self.book(*((inward, outward) if self.rank else (others * outward, others * inward)))


class BookedCounters:
    """Counters whose sums are booked by their carrier."""

    def __init__(self, carrier: Booked, counters: Counters) -> None:
        self._carrier, self._counters = carrier, counters

    def sum(self, planes: Words) -> None:
        """Sum, and book it."""
        self._carrier.book_merge(planes.nbytes)
        self._counters.sum(planes)


class HostWords:
    """What carriers of NumPy's words have in common. `make` makes them: zeros of a shape."""

    def __init__(self, make: Callable[[tuple[int, ...]], Words] | None = None) -> None:
        self._make = make or _zeros

    def zeros(self, *shape: int) -> Words:
        """Return new words, uint64, all 0."""
        return self._make(shape)

    def put(self, words: Words) -> Words:
        """Return the words themselves."""
        return words

    def majority(self, rows: Words, tie: Tie, voted: Words, ties: Words, first_word: int = 0) -> None:
        """Vote by the kernels of the CPU: see `counting.vote_into`."""
        from ..coding import counting

        counting.vote_into(rows, tie, voted, ties, first_word)

    def timed(self, spans: Spans, name: str) -> AbstractContextManager[None]:
        """Add the block's time to a span."""
        return spans(name)


def _zeros(shape: tuple[int, ...]) -> Words:
    import numpy as np

    return np.zeros(shape, np.uint64)


class HostCarrier(HostWords):
    """Words of the host over an MPI communicator; `make` makes them where zeros of NumPy won't do."""

    def __init__(self, comm: MPI.Comm, make: Callable[[tuple[int, ...]], Words] | None = None) -> None:
        super().__init__(make)
        self._comm, self.size, self.rank = comm, comm.size, comm.rank
        self._made = ExitStack()
        self._counters: dict[int, Counters] = {}
        self._parts: tuple[HostCarrier, HostCarrier] | None = None

    def allgather(self, thing: Any) -> list[Any]:
        """Gather a Python object from each rank."""
        return self._comm.allgather(thing)

    def start_gather(self, mine: Words, rows: Words) -> Callable[[], None]:
        """MPI_Iallgather."""
        return patience.start_allgather(self._comm, mine, rows)

    def all_to_all(self, sent: Words, received: Words) -> None:
        """MPI_Alltoall."""
        self._comm.Alltoall(sent, received)

    def complete(self, rows: Words) -> None:
        """MPI_Allgather in place."""
        from mpi4py import MPI

        self._comm.Allgather(MPI.IN_PLACE, rows)

    def gather(self, words: Words, rows: Words) -> None:
        """MPI_Gather to rank 0."""
        self._comm.Gather(words, None if self.rank else rows, root=0)

    def broadcast(self, words: Words) -> None:
        """MPI_Bcast from rank 0."""
        self._comm.Bcast(words, root=0)

    def intersect(self, words: Words) -> None:
        """MPI_Allreduce by MPI_BAND."""
        from mpi4py import MPI

        self._comm.Allreduce(MPI.IN_PLACE, words, MPI.BAND)

    def counters(self, K: int) -> Counters:
        """Return what sums counters by MPI_Allreduce."""
        if K not in self._counters:
            self._counters[K] = _ReducedCounters(self._comm, K, self._made)
        return self._counters[K]

    def by_node(self) -> tuple[HostCarrier, HostCarrier]:
        """Split by shared memory."""
        if self._parts is None:
            node = nodes.split_by_node(self._comm)
            leaders = self._comm.Split(0 if node.rank == 0 else 1, self.rank)
            self._parts = HostCarrier(node, self._make), HostCarrier(leaders, self._make)
            for part, comm in zip(self._parts, (node, leaders), strict=True):
                self._made.callback(comm.Free)
                self._made.callback(part.close)
        return self._parts

    def close(self) -> None:
        """Free the communicators and operations that were made."""
        self._made.close()
        self._counters.clear()
        self._parts = None


class _ReducedCounters:
    """Counters that MPI_Allreduce sums by our own operation, which `made` frees."""

    def __init__(self, comm: MPI.Comm, K: int, made: ExitStack) -> None:
        from .native import CounterSum

        self._comm, self._sum = comm, CounterSum(K)
        made.callback(self._sum.free)

    def sum(self, planes: Words) -> None:
        from mpi4py import MPI

        self._comm.Allreduce(MPI.IN_PLACE, [planes, len(planes), self._sum.datatype], self._sum.op)


class GroupComm:
    """Ranks that vote over torch.distributed, without MPI: `VoteState(GroupComm())`.

    Args:
        group: Whose ranks they are, in its order; None is the default group.
        backend: Of the group that `Dup` makes: "nccl" or "gloo". None is the group's own.

    Raises:
        ValueError: torch.distributed is not initialized, or this rank is not of the group.

    """

    def __init__(self, group: Any = None, backend: str | None = None) -> None:
        import torch.distributed as dist

        if not dist.is_initialized():
            raise ValueError(
                "group: torch.distributed is not initialized: call torch.distributed.init_process_group before, or "
                "hand in an MPI communicator"
            )
        self.group: Any = dist.group.WORLD if group is None else group
        if not isinstance(self.group, dist.ProcessGroup):
            raise ValueError(f"group: expected a process group that this rank is in, got {group!r}")
        self.backend = backend
        self.size, self.rank = dist.get_world_size(self.group), dist.get_rank(self.group)
        self.members: list[int] = dist.get_process_group_ranks(self.group)  # their ranks in the default group
        self.patient = self.computing = True  # torch.distributed waits asleep in any case
        self._own = False

    def Dup(self) -> GroupComm:
        """Return one with a group of its own, with its own order of collectives. Collective."""
        import torch.distributed as dist

        backend = self.backend or dist.get_backend_config(self.group)
        # Only the ranks of this group take part: others know nothing of the vote.
        group = dist.new_group(self.members, backend=backend, use_local_synchronization=True)
        new = GroupComm(group, backend)
        new._own = True
        return new

    def Free(self) -> None:
        """Free what `Dup` made; twice is harmless. Collective."""
        import torch.distributed as dist

        if self._own and dist.is_initialized():  # else all groups are gone already
            dist.destroy_process_group(self.group)
        self._own = False

    def allgather(self, thing: Any) -> list[Any]:
        """Gather a Python object from each rank."""
        import torch.distributed as dist

        things: list[Any] = [None] * self.size
        dist.all_gather_object(things, thing, group=self.group)
        return things

    def backend_of(self, device: str) -> str | None:
        """Return the backend that takes tensors of a kind of device ("cpu", "cuda"), or None."""
        import torch.distributed as dist

        backends = dict(pair.split(":") for pair in dist.get_backend_config(self.group).split(","))
        return backends.get(device)
