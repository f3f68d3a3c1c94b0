"""The rivals, as hooks of the same signature and rows of the same table. A baseline is called what it is."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from ..ranks import patience
from ..ranks.worker import Worker

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist
    from mpi4py import MPI
    from torch import Tensor

    from ..voting.adversary import Traitor

Hook = Callable[[Any, Any], "torch.futures.Future[Tensor]"]


class Baseline(NamedTuple):
    """A dense rival: what it is, how its hook is made, and what its mean may be off by."""

    summary: str
    hook: Callable[[MPI.Comm, contextlib.ExitStack], tuple[Hook, Any]]  # -> the hook and its state; collective
    wire_bytes: Callable[[Shapes], int]  # that a bucket of tensors of such shapes puts into an all-reduce
    roundoff: float | None  # of its arithmetic, relative; None: it sends nothing; LOSSY: no mean can be asked of it
    underflow: float = 0.0  # what an operation may lose near 0, absolute
    needs_nccl: bool = False
    keeps_state: bool = False  # between steps, which checkpoints don't have
    unasked: str = ""  # why it is left out on CPUs unless it is asked for


Shapes = list[tuple[int, ...]]
LOSSY = math.inf


def _fp(size: int) -> Callable[[Shapes], int]:
    return lambda shapes: size * sum(map(math.prod, shapes))


def _done(tensor: Tensor) -> torch.futures.Future[Tensor]:
    import torch

    future: torch.futures.Future[Tensor] = torch.futures.Future()
    future.set_result(tensor)
    return future


def _none(comm: MPI.Comm, held: contextlib.ExitStack) -> tuple[Hook, Any]:
    return lambda state, bucket: _done(bucket.buffer()), None


def _in_thread(
    work: Callable[[Any, Any], Tensor], held: contextlib.ExitStack
) -> Callable[[Any, Any], torch.futures.Future[Tensor]]:
    """Return the hook that does `work(state, bucket)` in a thread, bucket after bucket, while backward goes on."""
    worker = Worker()
    held.callback(worker.close)

    def hook(state: Any, bucket: Any) -> torch.futures.Future[Tensor]:
        import torch

        future: torch.futures.Future[Tensor] = torch.futures.Future()
        worker.submit(lambda: future.set_result(work(state, bucket)))
        if bucket.is_last():
            worker.wait()
        return future

    return hook


def _mpi(comm: MPI.Comm, held: contextlib.ExitStack) -> tuple[Hook, Any]:
    own = patience.Patient(comm.Dup())
    held.callback(own.Free)

    def all_reduce(state: patience.Patient, bucket: Any) -> Tensor:
        from mpi4py import MPI

        from ..coding.coding import on_host

        buffer: Tensor = bucket.buffer()
        with on_host(buffer) as host:
            host.div_(state.size)  # before the sum, as DDP does
            state.Allreduce(MPI.IN_PLACE, host.numpy())
        return buffer

    return _in_thread(all_reduce, held), own


def _group(backend: str | None) -> dist.ProcessGroup:
    """Return the process group of a backend; None is the default group's: NCCL where it runs, else Gloo."""
    import torch.distributed as dist

    if backend in (None, dist.get_backend()):
        return dist.distributed_c10d._get_default_group()
    return cast("dist.ProcessGroup", dist.new_group(backend=backend))


def _gloo(comm: MPI.Comm, held: contextlib.ExitStack) -> tuple[Hook, Any]:
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    group = _group("gloo")

    def by_way_of_the_host(state: Any, bucket: Any) -> Tensor:
        import torch.distributed as dist

        from ..coding.coding import on_host

        buffer: Tensor = bucket.buffer()
        with on_host(buffer) as host:
            dist.all_reduce(host.div_(group.size()), group=group)
        return buffer

    on_cuda = _in_thread(by_way_of_the_host, held)
    return lambda state, bucket: (on_cuda if bucket.buffer().is_cuda else allreduce_hook)(state, bucket), group


def _nccl(comm: MPI.Comm, held: contextlib.ExitStack) -> tuple[Hook, Any]:
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    return allreduce_hook, _group("nccl")


def _compressed(bits: str) -> Callable[[MPI.Comm, contextlib.ExitStack], tuple[Hook, Any]]:
    """Return the maker of PyTorch's hook that halves the bits."""

    def make(comm: MPI.Comm, held: contextlib.ExitStack) -> tuple[Hook, Any]:
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

        return getattr(default_hooks, f"{bits}_compress_hook"), _group(None)

    return make


# PowerSGD compresses matrices to a product of two thin ones (Vogels et al. 2019, arXiv 1905.13727); its first steps
# are plain all-reduces, the fewest that PyTorch allows with its error feedback.
POWER_SGD_BEGINS = 2


def _power_sgd(rank: int) -> Callable[[MPI.Comm, contextlib.ExitStack], tuple[Hook, Any]]:
    def make(comm: MPI.Comm, held: contextlib.ExitStack) -> tuple[Hook, Any]:
        import logging

        from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as power_sgd

        logging.getLogger(power_sgd.__name__).setLevel(logging.WARNING)
        group = _group(None)
        state = power_sgd.PowerSGDState(group, rank, start_powerSGD_iter=POWER_SGD_BEGINS)
        if group.name() == "nccl":
            return power_sgd.powerSGD_hook, state
        # It waits in callbacks (https://github.com/pytorch/pytorch/issues/48478), which Gloo runs in the few threads
        # that it exchanges with: with more than one bucket under way, all of them come to wait for each other.
        return _in_thread(lambda state, bucket: power_sgd.powerSGD_hook(state, bucket).wait(), held), state

    return make


def _power_sgd_bytes(rank: int) -> Callable[[Shapes], int]:
    """Count as the hook decides: a matrix is sent as two factors where that is less than half of it."""

    def wire_bytes(shapes: Shapes) -> int:
        coordinates = 0
        for shape in shapes:
            rows, columns = (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (math.prod(shape), 1)
            kept = min(rows, columns, rank)
            thin = len(shape) > 1 and 2 * (rows + columns) * rank < rows * columns
            coordinates += (rows + columns) * kept if thin else rows * columns
        return 4 * coordinates

    return wire_bytes


BASELINES: dict[str, Baseline] = {
    "none": Baseline("sends nothing: the ceiling", _none, _fp(0), None),
    "mpi": Baseline("fp32 all-reduce by MPI", _mpi, _fp(4), 2**-24),
    "gloo": Baseline("fp32 all-reduce by Gloo, PyTorch's own on CPUs", _gloo, _fp(4), 2**-24),
    "nccl": Baseline("fp32 all-reduce by NCCL", _nccl, _fp(4), 2**-24, needs_nccl=True),
    "fp16": Baseline("fp16 all-reduce by NCCL, or by Gloo without it", _compressed("fp16"), _fp(2), 2**-11, 2**-25),
    "bf16": Baseline("bf16 all-reduce by NCCL, or by Gloo without it", _compressed("bf16"), _fp(2), 2**-8),
    **{
        f"powersgd-{rank}": Baseline(f"PowerSGD of rank {rank}, by NCCL or Gloo", _power_sgd(rank),
                                     _power_sgd_bytes(rank), LOSSY, keeps_state=True,
                                     unasked="its matrix products cost more time and memory on CPUs than they save; "
                                             "--methods asks for it")
        for rank in (2, 4)
    },
}  # fmt: skip
# The fp32 all-reduce that the others are held against: the first of these that runs.
REFERENCES = ("nccl", "gloo", "mpi")


def betray(traitor: Traitor | None, buffer: Tensor, bucket: int, step: int) -> None:
    """Let the traitor, if this rank is one, replace the gradient in `buffer`, in place."""
    if traitor is not None:
        from ..coding.coding import on_host

        with on_host(buffer) as host:
            traitor.lie_in_gradient(host.numpy(), bucket, step)
