"""The rivals, dense methods that average gradients, and the ceiling, which sends nothing.

Their hooks have the signature of a vote's, and their rows stand in the same table. A rival is called what it is.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from ..ranks import patience
from .method import LARGEST, MATRICES, MPI, NCCL, Buffers, Hook, Method, Ready, Shapes, Standard, Terms

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist
    from torch import Tensor

    from ..network.traffic import Traffic
    from ..ranks.launch import Comm
    from ..voting.bucket import Bucket


def _done(tensor: Tensor) -> torch.futures.Future[Tensor]:
    import torch

    future: torch.futures.Future[Tensor] = torch.futures.Future()
    future.set_result(tensor)
    return future


def _none(comm: Comm, terms: Terms, resources: contextlib.ExitStack) -> Ready:
    """Make the ceiling: each rank keeps its own gradient.

    No exchange can be faster. Example: if an iteration takes 820 ms with `none` and 900 ms with `vote-alltoall`, then
    80 ms of the vote are exposed, and no better vote can save more than these.
    """
    return Ready(lambda state, bucket: _done(bucket.buffer()))


def _in_thread(work: Callable[[Any, Any], Tensor], resources: contextlib.ExitStack) -> Hook:
    """Return the hook that does `work(state, bucket)` in a thread, bucket after bucket, while backward goes on."""
    from ..ranks.worker import Worker

    worker = Worker()
    resources.callback(worker.close)

    def hook(state: Any, bucket: Any) -> torch.futures.Future[Tensor]:
        import torch

        future: torch.futures.Future[Tensor] = torch.futures.Future()
        worker.submit(lambda: future.set_result(work(state, bucket)))
        if bucket.is_last():
            worker.wait()
        return future

    return hook


class _ByMPI(Ready):
    """An exchange in a thread that waits asleep beside backward, and spinning after it."""

    state: patience.Patient

    def set_schedule(self, schedule: str) -> None:
        self.state.patient = schedule == "overlap"


def _by_mpi(
    comm: Any, work: Callable[[patience.Patient, Tensor], object], resources: contextlib.ExitStack, *, divisor: int = 1
) -> Ready:
    """Make what does `work(comm, gradient on the host)` in a thread, over a communicator of its own."""
    from ..coding.coding import on_host

    own = patience.Patient(comm.Dup())
    resources.callback(own.Free)

    def exchange(state: patience.Patient, bucket: Any) -> Tensor:
        buffer: Tensor = bucket.buffer()
        with on_host(buffer) as host:
            work(state, host)
        return buffer

    in_thread = _in_thread(exchange, resources)

    def hook(state: patience.Patient, bucket: Any) -> torch.futures.Future[Tensor]:
        state.computing = not bucket.is_last()
        return in_thread(state, bucket)

    return _ByMPI(hook, own, divisor=divisor)


def _mpi(comm: Any, terms: Terms, resources: contextlib.ExitStack) -> Ready:
    """Make the sum by `MPI_Allreduce`, in place, in a thread.

    Example: 4 ranks, a bucket of 1,000 coordinates. 4,000 bytes are all-reduced; each rank sends and receives
    2 (4 - 1) / 4 times as many, 6,000, at the least.
    """

    def all_reduce(comm: patience.Patient, gradient: Tensor) -> None:
        from mpi4py.MPI import IN_PLACE

        comm.Allreduce(IN_PLACE, gradient.numpy())

    return _by_mpi(comm, all_reduce, resources, divisor=comm.size)


def _bf16_mpi(comm: Any, terms: Terms, resources: contextlib.ExitStack) -> Ready:
    """Make the mean by MPI in bf16: each rank gets its share of all ranks' coordinates, sums, and hands out the mean.

    An operation of our own for `MPI_Allreduce` would be left to what MPI does with it: MPICH sends the whole vector
    log2 P times. Example: 4 ranks, a bucket of 1,000 coordinates: each rank sends 3 shares of 250, twice, 3,000 bytes.
    """
    from .shares import Shares

    shares = Shares(comm.size, comm.rank)
    return _by_mpi(comm, shares.mean, resources)


def _group(backend: str | None) -> dist.ProcessGroup:
    """Return the process group of a backend; None is the default group's: NCCL where it runs, else Gloo."""
    import torch.distributed as dist

    if backend in (None, dist.get_backend()):
        return dist.distributed_c10d._get_default_group()
    return cast("dist.ProcessGroup", dist.new_group(backend=backend))


def _sum(group: dist.ProcessGroup, bucket: Any) -> torch.futures.Future[Tensor]:
    """Sum a bucket as DDP without a hook does, `_AllReduceBySumCommHook` of PyTorch's reducer."""
    import torch.distributed as dist

    work = dist.all_reduce(bucket.buffer(), group=group, async_op=True)
    future: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
    return future


def _gloo(comm: Comm, terms: Terms, resources: contextlib.ExitStack) -> Ready:
    """Make the sum by Gloo, as DDP without a hook does. CUDA goes via the host.

    Example: the same 6,000 bytes a rank as by MPI for 1,000 coordinates and 4 ranks, over Gloo's own sockets.
    """
    group = _group("gloo")

    def by_way_of_the_host(group: dist.ProcessGroup, bucket: Any) -> Tensor:
        import torch.distributed as dist

        from ..coding.coding import on_host

        buffer: Tensor = bucket.buffer()
        with on_host(buffer) as host:
            dist.all_reduce(host, group=group)
        return buffer

    on_cuda = _in_thread(by_way_of_the_host, resources)

    def hook(group: dist.ProcessGroup, bucket: Any) -> torch.futures.Future[Tensor]:
        return on_cuda(group, bucket) if bucket.buffer().is_cuda else _sum(group, bucket)

    return Ready(hook, group, divisor=comm.size)


def _nccl(comm: Comm, terms: Terms, resources: contextlib.ExitStack) -> Ready:
    """Make the sum by NCCL, as DDP without a hook does.

    Example: the same 6,000 bytes a rank for 1,000 coordinates and 4 ranks, between the devices' own memory.
    """
    return Ready(_sum, _group("nccl"), divisor=comm.size)


def _compressed(bits: str) -> Callable[[Comm, Terms, contextlib.ExitStack], Ready]:
    """Return the maker of PyTorch's hook that halves the bits: `fp16_compress_hook` or `bf16_compress_hook`.

    Example: 4 ranks, a bucket of 1,000 coordinates: 2,000 bytes are all-reduced, and each rank sends 3,000. A mean
    of 0.3 comes as 0.2999 in fp16 (11 bits) and as 0.3008 in bf16 (8 bits).
    """

    def make(comm: Comm, terms: Terms, resources: contextlib.ExitStack) -> Ready:
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

        return Ready(getattr(default_hooks, f"{bits}_compress_hook"), _group(None))

    return make


class _PowerSGD(Ready):
    """PowerSGD, which keeps back what it could not send; each exchange makes a new tensor of that."""

    def kept_of(self, bucket: Bucket) -> Tensor | None:
        kept: Tensor | None = self.state.error_dict.get(bucket.index())
        return kept


BUCKET = 7_000_000  # coordinates of a large bucket of DDP's
POWER_SGD_BEGINS = 2  # the step of the first factors, the earliest that PyTorch allows with its error feedback


def _power_sgd(rank: int) -> Callable[[Comm, Terms, contextlib.ExitStack], Ready]:
    """Return the maker of PowerSGD: a matrix is sent as the product of two thin ones (arXiv 1905.13727).

    Its first steps are plain all-reduces. Example: rank 2, a matrix of 512 x 4,608: 2 (512 + 4,608) coordinates go
    into all-reduces instead of 512 * 4,608, one in 230.
    """

    def make(comm: Comm, terms: Terms, resources: contextlib.ExitStack) -> Ready:
        import logging

        from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as power_sgd

        logging.getLogger(power_sgd.__name__).setLevel(logging.WARNING)
        group = _group(None)
        state = power_sgd.PowerSGDState(group, rank, start_powerSGD_iter=POWER_SGD_BEGINS)
        if group.name() == "nccl":
            return _PowerSGD(power_sgd.powerSGD_hook, state)
        # It waits in callbacks (https://github.com/pytorch/pytorch/issues/48478), which Gloo runs in the few threads
        # that it exchanges with: with more than one bucket under way, all of them come to wait for each other.
        work = _in_thread(lambda state, bucket: power_sgd.powerSGD_hook(state, bucket).wait(), resources)
        return _PowerSGD(work, state)

    return make


def _power_sgd_coordinates(rank: int) -> Callable[[Shapes], int]:
    """Count as the hook decides."""

    def coordinates(shapes: Shapes) -> int:
        from .projections import is_compressed

        sent = 0
        for shape in shapes:
            rows, columns = (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (math.prod(shape), 1)
            sent += (rows + columns) * min(rows, columns, rank) if is_compressed(shape, rank) else rows * columns
        return sent

    return coordinates


def _all(shapes: Shapes) -> int:
    return sum(map(math.prod, shapes))


def _all_reduced(size: int, coordinates: Callable[[Shapes], int] = _all) -> Callable[..., Traffic]:
    """Book an all-reduce of so many bytes a coordinate."""

    def traffic(shapes: Shapes, tie: str, nodes: Sequence[int]) -> Traffic:
        from ..network.traffic import all_reduce

        return all_reduce(size * coordinates(shapes), len(nodes))

    return traffic


def _reduced_by_shares(size: int) -> Callable[..., Traffic]:
    """Book a mean of which each rank makes its share, of so many bytes a coordinate."""

    def traffic(shapes: Shapes, tie: str, nodes: Sequence[int]) -> Traffic:
        from ..network.traffic import reduce_shares

        return reduce_shares(_all(shapes), size, len(nodes))

    return traffic


def _mean(roundoff: float, underflow: float = 0.0, largest: float = LARGEST) -> Standard:
    return Standard("mean", roundoff, underflow, largest)


def _narrow_copy(n: int, P: int) -> Buffers:
    return Buffers(shared=2 * n)


def _shares(n: int, P: int) -> Buffers:
    return Buffers(own=4 * min(n, BUCKET))


_POWER_SGD_UNASKED = (
    "its matrix products cost more time and memory on CPUs than they save; --methods asks for it"
)  # fmt: skip
RIVALS = (
    Method("none", "ceiling", "sends nothing: the ceiling", _none, _all_reduced(0), Standard("nothing")),
    Method("mpi", "rival", "fp32 all-reduce by MPI", _mpi, _all_reduced(4), _mean(2**-24), frozenset({MPI})),
    Method("gloo", "rival", "fp32 all-reduce by Gloo, PyTorch's own on CPUs", _gloo, _all_reduced(4), _mean(2**-24)),
    Method("nccl", "rival", "fp32 all-reduce by NCCL", _nccl, _all_reduced(4), _mean(2**-24), frozenset({NCCL})),
    Method("fp16", "rival", "fp16 all-reduce by NCCL, or by Gloo without it", _compressed("fp16"), _all_reduced(2),
           _mean(2**-11, 2**-25, largest=65504.0), buffers=_narrow_copy),
    Method("bf16", "rival", "bf16 all-reduce by NCCL, or by Gloo without it", _compressed("bf16"), _all_reduced(2),
           _mean(2**-8), buffers=_narrow_copy),
    Method("bf16-mpi", "rival", "bf16 sent by MPI, summed in fp32", _bf16_mpi, _reduced_by_shares(2), _mean(2**-8),
           frozenset({MPI}), buffers=_shares),
    *(
        Method(f"powersgd-{rank}", "rival", f"PowerSGD of rank {rank}, by NCCL or Gloo", _power_sgd(rank),
               _all_reduced(4, _power_sgd_coordinates(rank)), Standard("projection", rank=rank), frozenset({MATRICES}),
               _POWER_SGD_UNASKED, keeps_state=True)
        for rank in (2, 4)
    ),
)  # fmt: skip
# The fp32 all-reduce that the others are held against: the first of these that runs.
REFERENCES = ("nccl", "gloo", "mpi")
