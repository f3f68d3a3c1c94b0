"""The MPI session: how ranks start, agree on an error, and end together.

Nothing here imports mpi4py before it must: `--help` needs no MPI.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from mpi4py import MPI
    from numpy.typing import NDArray

# What launchers tell the processes that they start, the one nearest to the process first: (ranks, this rank).
LAUNCHERS = {
    "Open MPI's mpirun": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    "mpirun": ("PMI_SIZE", "PMI_RANK"),
    "srun": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    "the scheduler": ("SLURM_NTASKS", "SLURM_PROCID"),
}
FAULTY = 2  # the exit code for bad input, argparse's own


class JobError(Exception):
    """What ends a job though the program is sound: told in one line, without a traceback."""


def launched() -> tuple[str, int, int]:
    """Return who started this process, how many ranks it meant to start, and which one this is to be."""
    for launcher, (size, rank) in LAUNCHERS.items():
        if os.environ.get(size, "").isdigit():
            return launcher, int(os.environ[size]), int(os.environ.get(rank, "0"))
    return "python", 1, 0


def started_singly(size: int) -> str | None:
    """Say what is wrong where a launcher meant to start more ranks than the `size` of COMM_WORLD, else None."""
    launcher, wanted, _ = launched()
    if size == wanted or wanted == 1:
        return None
    return (
        f"{launcher} was to start {wanted} ranks, but MPI sees {size}: launcher and MPI library don't belong together. "
        f"Start with the mpirun of this Python's MPI (mpirun -n {wanted} python -m ...), or with srun --mpi=TYPE "
        "(pmi2 for MPICH, pmix for Open MPI; srun --mpi=list shows what there is)"
    )


@contextlib.contextmanager
def session(program: str) -> Iterator[MPI.Comm]:
    """Start MPI and yield COMM_WORLD; when one rank raises, print its traceback and abort all ranks.

    A SystemExit passes: who raises it has agreed on it with the others (`refusing`).
    """
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    fault = started_singly(comm.size)
    if fault:
        refuse(program, fault)
    try:
        yield comm
    except SystemExit:
        raise
    except BaseException as error:
        if comm.size == 1 and not isinstance(error, JobError):
            raise
        if isinstance(error, KeyboardInterrupt):
            print(f"{program}: rank {comm.rank} was interrupted", file=sys.stderr, flush=True)
        elif isinstance(error, JobError):
            print(f"{program}: error: rank {comm.rank}: {error}", file=sys.stderr, flush=True)
        else:
            print(f"{program}: rank {comm.rank} failed, the job ends:\n{traceback.format_exc()}",
                  file=sys.stderr, flush=True)  # fmt: skip
        sys.stdout.flush()
        time.sleep(0.5)  # else a launcher may end before it has passed on what was printed
        comm.Abort(1)


def refuse(program: str, fault: str, rank: int | None = None) -> NoReturn:
    """End with one line, printed by rank 0, and exit code 2. Every rank must come here.

    `rank` is this one's, where MPI has started; else what the launcher said of it.
    """
    if (launched()[2] if rank is None else rank) == 0:
        print(f"{program}: error: {fault}", file=sys.stderr, flush=True)
    raise SystemExit(FAULTY)


@contextlib.contextmanager
def refusing(comm: MPI.Comm, program: str) -> Iterator[None]:
    """End on all ranks if the block raises a ValueError on any; the first one is printed. Collective at its end."""
    fault = None
    try:
        yield
    except ValueError as error:
        fault = str(error)
    faults = comm.allgather(fault)
    for rank, told in enumerate(faults):
        if told is not None:
            everywhere = all(other == told for other in faults)
            refuse(program, told if everywhere else f"{told} (on rank {rank})", comm.rank)


def gather_quietly(comm: MPI.Comm) -> None:
    """Wait for all ranks asleep, looking up every millisecond: a barrier for where no clock runs.

    MPI waits by spinning. Where ranks share cores, those that wait would take the time of those that still work.
    """
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(0.001)


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


PINGS = 20


def clock_offset(
    comm: MPI.Comm, nodes: list[int], clock: Callable[[], float] = time.perf_counter
) -> tuple[float, float]:
    """Return what to add to this rank's clock to get rank 0's, and how far off that may be on any rank, in seconds.

    Collective. The ranks of a node (see `nodes_of`) read one clock. Rank 0 asks the first rank of each other node for
    the time: the answer was given between asking and hearing, so the middle is off by at most half of the trip, and
    of PINGS trips the quickest is taken (Cristian 1989). That is some microseconds on a network that is idle; on
    rank 0's node it is nothing.
    """
    found = 0.0, 0.0
    for other in sorted({nodes.index(node) for node in nodes} - {0}):
        if comm.rank == other:
            for _ in range(PINGS):
                comm.recv(source=0)
                comm.send(clock(), 0)
            found = comm.recv(source=0)
        elif comm.rank == 0:
            trips = []
            for _ in range(PINGS):
                asked = clock()
                comm.send(None, other)
                told = comm.recv(source=other)
                heard = clock()
                trips.append((heard - asked, (asked + heard) / 2 - told))
            quickest, offset = min(trips)
            comm.send((offset, quickest / 2), other)
    all_found = comm.allgather(found)
    return all_found[nodes.index(nodes[comm.rank])][0], max(error for _, error in all_found)


def split_by_node(comm: MPI.Comm) -> MPI.Comm:
    """Return the communicator of the ranks of `comm` that share this rank's memory; the caller frees it."""
    from mpi4py import MPI

    return comm.Split_type(MPI.COMM_TYPE_SHARED, comm.rank)


def nodes_of(comm: MPI.Comm) -> list[int]:
    """Return the number of its node for each rank of `comm`, nodes numbered by their first rank. Collective."""
    node = split_by_node(comm)
    leaders = comm.allgather(node.bcast(comm.rank))
    node.Free()
    order = sorted(set(leaders))
    return [order.index(leader) for leader in leaders]


def check_threads() -> None:
    """Raise a ValueError unless MPI may be called from a thread, while no other one does."""
    from mpi4py import MPI

    if MPI.Query_thread() < MPI.THREAD_SERIALIZED:
        raise ValueError("MPI: must be started with thread level serialized or multiple: gradients go through a thread")


def cuda_aware() -> bool | None:
    """Return whether the MPI library claims to take device memory, None if it can't be asked. It is not tried."""
    from mpi4py import MPI

    try:
        # By way of mpi4py's own file: the library's names are not among the process's global ones.
        return bool(ctypes.CDLL(MPI.__file__).MPIX_Query_cuda_support())
    except (OSError, AttributeError):
        return None


def facts(comm: MPI.Comm) -> dict[str, Any]:
    """Return what a record tells of MPI."""
    from mpi4py import MPI

    levels = {MPI.THREAD_SINGLE: "single", MPI.THREAD_FUNNELED: "funneled",
              MPI.THREAD_SERIALIZED: "serialized", MPI.THREAD_MULTIPLE: "multiple"}  # fmt: skip
    vendor, version = MPI.get_vendor()
    return {
        "mpi": f"{vendor} {'.'.join(map(str, version))}",
        "mpi_standard": ".".join(map(str, MPI.Get_version())),
        "thread_level": levels[MPI.Query_thread()],
        "ranks": comm.size,
    }
