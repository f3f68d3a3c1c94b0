"""Waiting asleep: MPI waits by spinning, which takes a core from whoever still works on it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .nodes import split_by_node

if TYPE_CHECKING:
    from mpi4py import MPI
    from numpy.typing import NDArray

    from .launch import Comm


def quiet_barrier(comm: Comm) -> None:
    """Wait for all ranks asleep, looking up every millisecond: a barrier for where no clock runs.

    MPI waits by spinning. Where ranks share cores, those that wait would take the time of those that still work.
    """
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(0.001)


def start_allgather(comm: Any, sent: NDArray[Any], received: NDArray[Any]) -> Callable[[], None]:
    """Start an all-gather and return what waits for it, asleep if the communicator is patient."""
    request = comm.Iallgather(sent, received)
    return (lambda: comm.finish(request)) if isinstance(comm, Patient) else request.Wait


def crowded(comm: MPI.Comm) -> bool:
    """Return whether this node has more ranks of `comm` than cores that these may run on. Collective."""
    node = split_by_node(comm)
    masks = node.allgather(os.sched_getaffinity(0))
    node.Free()
    return len(masks) > len(set().union(*masks))


class Patient:
    """A communicator whose collectives can be waited for asleep: MPI itself waits by spinning. Collective.

    While it is `patient`, which all ranks must agree on, a collective is started, and then tested for between naps:
    right for a thread beside one that computes, on whose core it would spin otherwise. Once `computing` is False there
    is none, and what is under way is waited for by MPI, also if that wait has begun before. `crowded` ranks nap on:
    whoever spins takes the core of another rank, for which it waits. What is split off is patient with it.
    """

    # A nap is a share of what has passed, so that waiting is longer than the exchange by this share at most; seconds,
    # the shortest and the longest (Linux adds its timer slack, 50 us).
    SHARE, NAPS = 1 / 8, (2e-5, 1e-3)
    LOOKS = 8  # between two naps: an exchange has many steps, and a test, about a microsecond, may do only one
    _COLLECTIVES = ("Allgather", "Allreduce", "Alltoall", "Alltoallv", "Bcast")

    def __init__(self, comm: MPI.Comm, origin: Patient | None = None) -> None:
        self._comm, self._origin = comm, origin or self
        self.patient, self._computing, self._spins = False, True, threading.Event()
        self.crowded: bool = crowded(comm) if origin is None else origin.crowded

    @property
    def computing(self) -> bool:
        """Whether this rank computes beside its exchanges. Each rank's own; may be set while another thread waits."""
        return self._computing

    @computing.setter
    def computing(self, computing: bool) -> None:
        self._computing = computing
        if computing or self.crowded:
            self._spins.clear()
        else:
            self._spins.set()

    def __getattr__(self, name: str) -> Any:
        if name not in self._COLLECTIVES or not self._origin.patient:
            return getattr(self._comm, name)
        # Whatever this rank computes: a collective that others start must be started here, too.
        start = getattr(self._comm, f"I{name.lower()}")
        return lambda *arguments, **named: self._wait([start(*arguments, **named)])

    def _wait(self, requests: Sequence[MPI.Request]) -> None:
        began = time.perf_counter()
        while not any(all(request.Test() for request in requests) for _ in range(self.LOOKS)):
            nap = self.SHARE * (time.perf_counter() - began)
            if self._origin._spins.wait(min(max(nap, self.NAPS[0]), self.NAPS[1])):
                for request in requests:
                    request.Wait()
                return

    def finish(self, request: MPI.Request) -> None:
        """Wait for what was started."""
        if self._origin.patient:
            self._wait([request])
        else:
            request.Wait()

    def Gather(self, sent: NDArray[Any], received: NDArray[Any] | None, root: int = 0) -> None:
        """Gather blocks into the rows of the root's `received`, each sent to it directly if patient.

        For MPICH's own non-blocking gather goes forward by 4 KiB a test on 4 ranks or more: 200 tests for 800 KB.
        """
        if not self._origin.patient:
            self._comm.Gather(sent, received, root)
        elif received is None:
            self._wait([self._comm.Isend(sent, root)])
        else:
            others = [rank for rank in range(self._comm.size) if rank != root]
            requests = [self._comm.Irecv(received[rank], rank) for rank in others]
            received[root] = sent
            self._wait(requests)

    def Dup(self) -> Patient:
        """Return a duplicate, patient by itself."""
        return Patient(self._comm.Dup())

    def Split(self, color: int, key: int) -> Patient:
        """Return this rank's part."""
        return Patient(self._comm.Split(color, key), self._origin)

    def Split_type(self, split_type: int, key: int) -> Patient:
        """Return the ranks that share this one's memory, or the like."""
        return Patient(self._comm.Split_type(split_type, key), self._origin)
