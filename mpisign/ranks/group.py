"""A process group of torch.distributed, started over MPI."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpi4py import MPI


@contextlib.contextmanager
def process_group(comm: MPI.Comm, backend: str, *, one_node: bool) -> Iterator[None]:
    """Start torch.distributed over MPI and stop it: rank 0 listens on a free port and tells the others."""
    import torch.distributed as dist
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    host = _address(comm, one_node)
    if one_node:  # Gloo would look up the host's name, which need not resolve
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    server = None
    if comm.rank == 0:
        server = TCPStore(host, 0, comm.size, is_master=True, wait_for_workers=False)
    port = comm.bcast(server.port if server else None)
    store = server or TCPStore(host, port, comm.size, is_master=False)
    dist.init_process_group(backend, store=store, rank=comm.rank, world_size=comm.size)
    yield
    # Not if the block raises: on one rank alone this may wait for the others, who wait for it.
    dist.destroy_process_group()


def _address(comm: MPI.Comm, one_node: bool) -> str:
    """Return where the other ranks reach rank 0. Collective."""
    host = "127.0.0.1" if one_node else socket.gethostname()
    return str(comm.bcast(host))


def nccl_fault() -> str | None:
    """Say why NCCL can't run here, or None."""
    import torch
    import torch.distributed as dist

    if not torch.cuda.is_available():
        return "NCCL needs CUDA devices, and there are none"
    return None if dist.is_nccl_available() else "this torch was built without NCCL"
