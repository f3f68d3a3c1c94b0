"""Which ranks share a node."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from .torchrun import TorchComm

if TYPE_CHECKING:
    from mpi4py import MPI

    from .launch import Comm


def split_by_node(comm: MPI.Comm) -> MPI.Comm:
    """Return the communicator of the ranks of `comm` that share this rank's memory; the caller frees it."""
    from mpi4py import MPI

    return comm.Split_type(MPI.COMM_TYPE_SHARED, comm.rank)


def nodes_of(comm: Comm) -> list[int]:
    """Return the number of its node for each rank of `comm`, nodes numbered by their first rank. Collective.

    Without MPI those share a node that run on one kernel under one host name.
    """
    if isinstance(comm, TorchComm):
        hosts = comm.allgather((socket.gethostname(), _boot()))
        leaders = [hosts.index(host) for host in hosts]
    else:
        node = split_by_node(comm)
        leaders = comm.allgather(node.bcast(comm.rank))
        node.Free()
    order = sorted(set(leaders))
    return [order.index(leader) for leader in leaders]


def _boot() -> str:
    """Return the kernel's number of this boot, random; "" where it has none."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text()
    return ""
