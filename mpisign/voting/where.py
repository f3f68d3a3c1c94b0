"""Where votes are held: what users hand to VoteState, and which ranks of torch.distributed that is."""

from __future__ import annotations

import sys
from typing import Any

import torch.distributed as dist

from .carriers import GroupComm

Comm = Any  # an MPI communicator or a GroupComm: what both have is enough


def comm_of(where: Any) -> Comm:
    """Return the communicator of a vote: an mpi4py communicator as it is, a process group (None: the default) wrapped.

    Raises:
        ValueError: it is neither, or torch.distributed has not been started.

    """
    if isinstance(where, GroupComm):
        return where
    if where is None or isinstance(where, dist.ProcessGroup):
        return GroupComm(where)
    mpi = sys.modules.get("mpi4py.MPI")  # who hands in a communicator has imported it
    if mpi is not None and isinstance(where, mpi.Intracomm) and where != mpi.COMM_NULL:
        return where
    raise ValueError(
        "VoteState: where is neither an mpi4py communicator nor a process group of torch.distributed, but "
        f"{type(where).__name__}"
    )


def members_of(comm: Comm) -> list[int] | None:
    """Return the ranks of a communicator as torch.distributed numbers them; None if that has not been started.

    Collective.
    """
    if isinstance(comm, GroupComm):
        return list(comm.members)
    ranks = comm.allgather(dist.get_rank() if dist.is_available() and dist.is_initialized() else None)
    return None if None in ranks else ranks
