"""The default process group of torch.distributed."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .torchrun import TorchComm

if TYPE_CHECKING:
    from .launch import Comm


@contextlib.contextmanager
def process_group(comm: Comm, backend: str, *, one_node: bool) -> Iterator[None]:
    """Start torch.distributed and stop it."""
    import torch.distributed as dist

    if one_node:  # Gloo would look up the host's name, which need not resolve
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(backend, store=_store(comm, one_node), rank=comm.rank, world_size=comm.size)
    yield
    # Not if the block raises: on one rank alone this may wait for the others, who wait for it.
    dist.destroy_process_group()


def _store(comm: Comm, one_node: bool) -> Any:
    """Return where ranks find each other: over MPI rank 0 listens on a free port and tells the others. Collective."""
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    if isinstance(comm, TorchComm):
        return PrefixStore("default", comm.store)
    host = str(comm.bcast("127.0.0.1" if one_node else socket.gethostname()))
    server = None
    if comm.rank == 0:
        server = TCPStore(host, 0, comm.size, is_master=True, wait_for_workers=False)
    port = comm.bcast(server.port if server else None)
    return server or TCPStore(host, port, comm.size, is_master=False)


def nccl_fault() -> str | None:
    """Say why NCCL can't run here, or None."""
    import torch
    import torch.distributed as dist

    if not torch.cuda.is_available():
        return "NCCL needs CUDA devices, and there are none"
    return None if dist.is_nccl_available() else "this torch was built without NCCL"
