"""Ranks as threads of one process: a carrier without MPI, on which every exchange can be proved at any P."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from .carriers import HostWords

if TYPE_CHECKING:
    from ..coding.bits import Words

T = TypeVar("T")

PATIENCE = 120  # seconds that a thread waits for the others


class _Meeting:
    """Where so many threads meet: a slot for what each shows the others, and a barrier before and after they look."""

    def __init__(self, P: int) -> None:
        self.slots: list[Any] = [None] * P
        self.barrier = threading.Barrier(P, timeout=PATIENCE)
        self.parts: list[_Meeting] = []

    @contextlib.contextmanager
    def shown(self, rank: int, thing: Any) -> Iterator[list[Any]]:
        """Yield what all threads show; what this one shows may be read by others until the block's end."""
        self.slots[rank] = thing
        self.barrier.wait()
        yield self.slots
        self.barrier.wait()

    def part(self, P: int) -> _Meeting:
        """Return a meeting of some of the threads, which ends with this one."""
        part = _Meeting(P)
        self.parts.append(part)
        return part

    def abort(self) -> None:
        """Have all threads that wait here, or will, raise a BrokenBarrierError."""
        self.barrier.abort()
        for part in self.parts:
            part.abort()


class ThreadCarrier(HostWords):
    """Words of the host between threads of one process; `nodes` is each rank's node number, one node by default.

    `run_threads` makes them.
    """

    def __init__(self, meeting: _Meeting, rank: int, nodes: Sequence[int] | None = None) -> None:
        super().__init__()
        self._meeting, self.rank, self.size = meeting, rank, len(meeting.slots)
        self._nodes = nodes or [0] * self.size

    def allgather(self, thing: Any) -> list[Any]:
        """Gather an object from each rank; it is shared, not copied."""
        with self._meeting.shown(self.rank, thing) as all_things:
            return list(all_things)

    def start_gather(self, mine: Words, rows: Words) -> Callable[[], None]:
        """Gather at once; `rows` is set when it is waited for."""
        gathered = self.allgather(mine.copy())

        def wait() -> None:
            rows[:] = gathered

        return wait

    def all_to_all(self, sent: Words, received: Words) -> None:
        """Copy this rank's block of what each rank sends."""
        with self._meeting.shown(self.rank, sent) as all_sent:
            for rank, theirs in enumerate(all_sent):
                received[rank] = theirs.reshape(received.shape)[self.rank]

    def complete(self, rows: Words) -> None:
        """Copy each other rank's own row."""
        with self._meeting.shown(self.rank, rows) as all_rows:
            for rank, theirs in enumerate(all_rows):
                if rank != self.rank:
                    rows[rank] = theirs[rank]

    def gather(self, words: Words, rows: Words) -> None:
        """Copy all words on rank 0."""
        with self._meeting.shown(self.rank, words) as all_words:
            if self.rank == 0:
                for row, theirs in zip(rows, all_words, strict=True):
                    row[:] = theirs

    def broadcast(self, words: Words) -> None:
        """Copy the words of rank 0."""
        with self._meeting.shown(self.rank, words) as all_words:
            if self.rank:
                words[:] = all_words[0]

    def intersect(self, words: Words) -> None:
        """Set the words to the bits of all ranks."""
        with self._meeting.shown(self.rank, words.copy()) as all_words:
            for theirs in all_words:
                words &= theirs

    def counters(self, K: int) -> _MergedCounters:
        """Return what sums counters by the kernel that MPI calls too."""
        return _MergedCounters(self._meeting, self.rank)

    def by_node(self) -> tuple[ThreadCarrier, ThreadCarrier]:
        """Split by the node numbers."""
        first = self._nodes.index(self._nodes[self.rank]) == self.rank
        return self._split(self._nodes[self.rank]), self._split(first)

    def _split(self, color: int) -> ThreadCarrier:
        """Return the carrier of the ranks that call with the same color."""
        members = [rank for rank, other in enumerate(self.allgather(color)) if other == color]
        founded = self._meeting.part(len(members)) if self.rank == members[0] else None
        return ThreadCarrier(self.allgather(founded)[members[0]], members.index(self.rank))

    def close(self) -> None:
        """Nothing to free."""


class _MergedCounters:
    """Counters that rank 0 merges, one rank's after the other's."""

    def __init__(self, meeting: _Meeting, rank: int) -> None:
        self._meeting, self._rank = meeting, rank

    def sum(self, planes: Words) -> None:
        from ..coding import counting

        with self._meeting.shown(self._rank, planes) as all_planes:
            if self._rank == 0:
                for theirs in all_planes[1:]:
                    counting.merge(theirs, planes)
        with self._meeting.shown(self._rank, planes) as all_planes:
            if self._rank:
                planes[:] = all_planes[0]


def run_threads(P: int, function: Callable[[ThreadCarrier], T], *, nodes: Sequence[int] | None = None) -> list[T]:
    """Call `function` on P ranks at once, each a thread with its carrier; return what each returned, by rank.

    If one raises, the others are not left waiting for it, and its exception is raised here. `nodes` is each rank's
    node number, one node by default.
    """
    meeting, results, faults = _Meeting(P), [None] * P, list[BaseException]()

    def run(rank: int) -> None:
        try:
            results[rank] = function(ThreadCarrier(meeting, rank, nodes))  # type: ignore[call-overload]
        except BaseException as fault:
            faults.append(fault)
            meeting.abort()

    threads = [threading.Thread(target=run, args=(rank,), name=f"rank {rank}") for rank in range(P)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for fault in sorted(faults, key=lambda fault: isinstance(fault, threading.BrokenBarrierError)):
        raise fault
    return results  # type: ignore[return-value]
