"""The rivals, as hooks of the same signature and rows of the same table. A baseline is called what it is."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from .worker import Worker

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist
    from mpi4py import MPI
    from torch import Tensor

    from .adversary import Traitor

Hook = Callable[[Any, Any], "torch.futures.Future[Tensor]"]


class Baseline(NamedTuple):
    """A dense rival: what it is, how its hook is made, and what its mean may be off by."""

    summary: str
    hook: Callable[[MPI.Comm, contextlib.ExitStack], tuple[Hook, Any]]  # -> the hook and its state; collective
    coordinate_bytes: int  # on the wire, of an all-reduce
    roundoff: float | None  # of its arithmetic; None: it computes no mean
    needs_nccl: bool = False


def _done(tensor: Tensor) -> torch.futures.Future[Tensor]:
    import torch

    future: torch.futures.Future[Tensor] = torch.futures.Future()
    future.set_result(tensor)
    return future


def _none(comm: MPI.Comm, held: contextlib.ExitStack) -> tuple[Hook, Any]:
    return lambda state, bucket: _done(bucket.buffer()), None


def _mpi(comm: MPI.Comm, held: contextlib.ExitStack) -> tuple[Hook, Any]:
    """Sum in a thread, as DDP's own hooks do, so that backward goes on meanwhile."""
    own, worker = comm.Dup(), Worker()
    held.callback(own.Free)
    held.callback(worker.close)

    def all_reduce(state: MPI.Comm, bucket: Any) -> torch.futures.Future[Tensor]:
        import torch

        future: torch.futures.Future[Tensor] = torch.futures.Future()

        def work() -> None:
            from mpi4py import MPI

            buffer = bucket.buffer()
            host = buffer.cpu()  # the buffer itself where it lives on the CPU
            host.div_(state.size)  # before the sum, as DDP does
            state.Allreduce(MPI.IN_PLACE, host.numpy())
            if buffer.data_ptr() != host.data_ptr():
                buffer.copy_(host)
            future.set_result(buffer)

        worker.submit(work)
        if bucket.is_last():
            worker.wait()
        return future

    return all_reduce, own


def _group(backend: str | None) -> dist.ProcessGroup:
    """Return the process group of a backend; None is the default group's: NCCL where it runs, else Gloo."""
    import torch.distributed as dist

    if backend in (None, dist.get_backend()):
        return dist.distributed_c10d._get_default_group()
    return cast("dist.ProcessGroup", dist.new_group(backend=backend))


def _gloo(comm: MPI.Comm, held: contextlib.ExitStack) -> tuple[Hook, Any]:
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    group = _group("gloo")

    def all_reduce(state: Any, bucket: Any) -> torch.futures.Future[Tensor]:
        buffer = bucket.buffer()
        if not buffer.is_cuda:
            return allreduce_hook(state, bucket)
        import torch.distributed as dist

        host = buffer.cpu().div_(group.size())
        dist.all_reduce(host, group=group)
        return _done(buffer.copy_(host))

    return all_reduce, group


def _nccl(comm: MPI.Comm, held: contextlib.ExitStack) -> tuple[Hook, Any]:
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    return allreduce_hook, _group("nccl")


def _bf16(comm: MPI.Comm, held: contextlib.ExitStack) -> tuple[Hook, Any]:
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

    return bf16_compress_hook, _group(None)


BASELINES: dict[str, Baseline] = {
    "none": Baseline("sends nothing: the ceiling", _none, 0, None),
    "mpi": Baseline("fp32 all-reduce by MPI", _mpi, 4, 2**-24),
    "gloo": Baseline("fp32 all-reduce by Gloo, PyTorch's own on CPUs", _gloo, 4, 2**-24),
    "nccl": Baseline("fp32 all-reduce by NCCL", _nccl, 4, 2**-24, needs_nccl=True),
    "bf16": Baseline("bf16 all-reduce by NCCL, or by Gloo without it", _bf16, 2, 2**-8),
}
# The fp32 all-reduce that the others are held against: the first of these that runs.
REFERENCES = ("nccl", "gloo", "mpi")


def betray(traitor: Traitor | None, buffer: Tensor, bucket: int, step: int) -> None:
    """Let the traitor, if this rank is one, replace the gradient in `buffer`, in place."""
    if traitor is not None:
        host = buffer.cpu()  # the buffer itself where it lives on the CPU
        traitor.lie_in_gradient(host.numpy(), bucket, step)
        if buffer.data_ptr() != host.data_ptr():
            buffer.copy_(host)


def nccl_fault(own_device: bool) -> str | None:
    """Say why NCCL can't run here, or None; `own_device`: each rank has a CUDA device to itself."""
    import torch
    import torch.distributed as dist

    if not torch.cuda.is_available():
        return "NCCL needs CUDA devices, and there are none"
    if not dist.is_nccl_available():
        return "this torch was built without NCCL"
    return None if own_device else "NCCL needs one CUDA device a rank, and there are fewer"


def _address(comm: MPI.Comm, one_node: bool) -> str:
    """Return where the other ranks reach rank 0. Collective."""
    host = "127.0.0.1" if one_node else socket.gethostname()
    return str(comm.bcast(host))


@contextlib.contextmanager
def process_group(comm: MPI.Comm, backend: str, one_node: bool) -> Iterator[None]:
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
    try:
        yield
    finally:
        dist.destroy_process_group()
