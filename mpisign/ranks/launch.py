"""The MPI session: how ranks start, and end together.

Nothing here imports mpi4py before it must: `--help` needs no MPI.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from mpi4py import MPI

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

    A SystemExit passes: who raises it has agreed on it with the others (`agreement.refusing`).
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


def refuse(program: str, fault: str, *, rank: int | None = None) -> NoReturn:
    """End with one line, printed by rank 0, and exit code 2. Every rank must come here.

    `rank` is this one's, where MPI has started; else what the launcher said of it.
    """
    if (launched()[2] if rank is None else rank) == 0:
        print(f"{program}: error: {fault}", file=sys.stderr, flush=True)
    raise SystemExit(FAULTY)
