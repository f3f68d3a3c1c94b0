"""Waiting asleep: MPI waits by spinning, which takes a core from whoever still works on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

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


class Patient:
    """A communicator whose collectives can be waited for asleep: MPI itself waits by spinning.

    While it is `patient`, a collective is started, and then tested for now and then: right for a thread beside one
    that computes, on whose core it would spin otherwise. What is split off is patient with it.
    """

    NAPS = 2e-5, 1e-3  # seconds, the first and the longest: a test takes some microseconds of a core
    _COLLECTIVES = ("Allgather", "Allreduce", "Alltoall", "Bcast")

    def __init__(self, comm: MPI.Comm, origin: Patient | None = None) -> None:
        self._comm, self._origin, self.patient = comm, origin or self, False

    def __getattr__(self, name: str) -> Any:
        if name not in self._COLLECTIVES or not self._origin.patient:
            return getattr(self._comm, name)
        start = getattr(self._comm, f"I{name.lower()}")
        return lambda *arguments, **named: self._wait([start(*arguments, **named)])

    def _wait(self, requests: list[MPI.Request]) -> None:
        from mpi4py import MPI

        nap = self.NAPS[0]
        while not MPI.Request.Testall(requests):
            time.sleep(nap)
            nap = min(2 * nap, self.NAPS[1])

    def finish(self, request: MPI.Request) -> None:
        """Wait for what was started."""
        if self._origin.patient:
            self._wait([request])
        else:
            request.Wait()

    def Gather(self, sent: NDArray[Any], received: NDArray[Any] | None, root: int = 0) -> None:
        """Gather blocks into the rows of the root's `received`, each sent to it directly if patient.

        For MPICH's own non-blocking gather goes forward by 4 KiB a test on 4 ranks or more: 200 naps for 800 KB.
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
