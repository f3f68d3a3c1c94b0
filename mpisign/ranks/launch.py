"""The session: how ranks start, over MPI or without it, and end together.

Nothing here imports mpi4py or torch before it must: `--help` needs neither.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn, TypeAlias

from . import torchrun, watch
from .torchrun import TorchComm

if TYPE_CHECKING:
    from mpi4py import MPI

    Comm: TypeAlias = MPI.Comm | TorchComm  # what a session gives to a command

# What launchers tell the processes that they start, the one nearest to the process first: (ranks, this rank).
LAUNCHERS = {
    "Open MPI's mpirun": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    "mpirun": ("PMI_SIZE", "PMI_RANK"),
    "srun": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    "the scheduler": ("SLURM_NTASKS", "SLURM_PROCID"),
}
FAULTY = 2  # the exit code for bad input, argparse's own
PASSING_ON = 0.5  # seconds; a launcher may end before it has passed on what was printed
GRACE = 10.0  # seconds; torchrun ends all ranks with the first that fails, and the one that speaks may be late


class JobError(Exception):
    """What ends a job though the program is sound: told in one line, without a traceback."""


def launched() -> tuple[str, int, int]:
    """Return who started this process, how many ranks it meant to start, and which one this is to be."""
    by = torchrun.launcher()
    if by:
        return by, int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
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


def without_mpi(comm: Comm) -> str | None:
    """Say why there is no MPI, or None."""
    return f"started by {torchrun.launcher()}: no MPI" if isinstance(comm, TorchComm) else None


@contextlib.contextmanager
def session(program: str) -> Iterator[Comm]:
    """Yield all ranks: COMM_WORLD of MPI, which is started, or torchrun's; if one raises, tell it and end all of them.

    A SystemExit passes: who raises it has agreed on it with the others (`agreement.refusing`).
    """
    comm = _started(program)
    try:
        yield comm
    except SystemExit:
        raise
    except BaseException as error:
        if comm.size == 1 and not isinstance(error, JobError):
            raise
        if not isinstance(comm, TorchComm) or comm.first_to_fail():
            print(_told(program, error, rank=comm.rank), file=sys.stderr, flush=True)
        sys.stdout.flush()
        time.sleep(PASSING_ON)
        comm.Abort(1)


def _started(program: str) -> Comm:
    """Find the other ranks, but do not wait for them for ever."""
    _, size, rank = launched()
    with watch.watched(program, rank) if size > 1 and not _met() else contextlib.nullcontext():
        return TorchComm() if torchrun.launcher() else _world(program)


def _met() -> bool:
    """Tell whether ranks have found each other in this process before."""
    return "mpi4py.MPI" in sys.modules or "torch.distributed" in sys.modules


def _world(program: str) -> MPI.Comm:
    """Start MPI."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        refuse(program, f"MPI can't be loaded ({reason}): mpisign doctor tells more; torchrun starts ranks without MPI")
    fault = started_singly(MPI.COMM_WORLD.size)
    if fault:
        refuse(program, fault)
    return MPI.COMM_WORLD


def _told(program: str, error: BaseException, *, rank: int) -> str:
    """Say how a rank came to its end."""
    if isinstance(error, KeyboardInterrupt):
        return f"{program}: rank {rank} was interrupted"
    if isinstance(error, JobError):
        return f"{program}: error: rank {rank}: {error}"
    return f"{program}: rank {rank} failed, the job ends:\n{traceback.format_exc()}"


def refuse(program: str, fault: str, comm: Comm | None = None) -> NoReturn:
    """End with one line, printed by rank 0, and exit code 2. Every rank must come here.

    Without `comm`, before the ranks have met, the launcher has said which rank this is.
    """
    rank = launched()[2] if comm is None else comm.rank
    if rank == 0:
        print(f"{program}: error: {fault}", file=sys.stderr, flush=True)
    if isinstance(comm, TorchComm):
        comm.Barrier()
    elif rank and torchrun.launcher():
        time.sleep(GRACE)
    raise SystemExit(FAULTY)
