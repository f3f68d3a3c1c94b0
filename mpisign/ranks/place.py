"""Where a rank runs: its device, its share of the cores, and what a record tells of the machine."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import launch
from .machine import check_threads, start_facts
from .machine import machine as machine_facts
from .nodes import nodes_of

if TYPE_CHECKING:
    import torch

    from .launch import Comm


@dataclass(frozen=True)
class Place:
    """Where a rank runs: its device, each rank's node number, and rank 0's facts for the record."""

    device: torch.device
    nodes: list[int]
    machine: dict[str, Any]
    without_nccl: str | None  # why NCCL can't run here
    without_mpi: str | None  # why there is no MPI

    @property
    def backend(self) -> str:
        """The backend of torch.distributed."""
        return "nccl" if self.without_nccl is None else "gloo"

    @property
    def takes_device_memory(self) -> bool:
        """Whether MPI can be given memory of this rank's device."""
        return self.device.type == "cuda" and self.machine["device_memory_fault"] is None

    @property
    def told(self) -> str:
        """How many ranks there are, on what."""
        ranks, nodes = self.machine["ranks"], self.machine["nodes"]
        return f"{ranks} rank{'s' * (ranks > 1)} on {nodes} node{'s' * (nodes > 1)}, {self.machine['device']}"

    @property
    def one_node(self) -> bool:
        """Whether all ranks share a node."""
        return len(set(self.nodes)) == 1


def find(comm: Comm, share_gpus: bool = False) -> Place:
    """Choose this rank's device, set torch's number of threads, and return both with the machine's facts. Collective.

    All ranks run on the same kind of device. Ranks share a CUDA device only with `share_gpus`.

    Raises:
        ValueError: on all ranks: fewer CUDA devices than ranks, or none to share; MPI has too low a thread level.

    """
    import torch

    from .group import nccl_fault

    without_mpi = launch.without_mpi(comm)
    if without_mpi is None:
        check_threads()
    nodes = nodes_of(comm)
    mine, before = nodes[comm.rank], nodes[: comm.rank].count(nodes[comm.rank])
    own = torch.device("cuda", before % torch.cuda.device_count()) if torch.cuda.is_available() else None
    # A rank may see all devices of its node, or only the one that the scheduler gave it.
    uuids = comm.allgather(None if own is None else str(torch.cuda.get_device_properties(own).uuid))
    cuda, gpus = None not in uuids, len(set(uuids) - {None})
    check_gpus(comm.size, gpus if cuda else 0, share=share_gpus)
    if cuda and gpus < comm.size:
        let_nccl_share(comm.rank)
    without_nccl = next(filter(None, comm.allgather(nccl_fault())), None)
    device = own if cuda and own else torch.device("cpu")
    affinity = os.sched_getaffinity(0)
    neighbours = [other for node, other in zip(nodes, comm.allgather(affinity), strict=True) if node == mine]
    if cuda:
        torch.cuda.set_device(device)
    machine = comm.bcast(machine_facts() if comm.rank == 0 else None) | start_facts(comm)
    machine |= {"nodes": len(set(nodes)), "cores": len(set().union(*neighbours)), "gpus": gpus if cuda else 0}
    machine["device"] = torch.cuda.get_device_name(device) if cuda else machine["cpu"]
    machine["ranks_per_core"] = len(neighbours) / machine["cores"]
    machine["bound"] = bound(neighbours)
    machine["torch_threads"] = threads_for(affinity, neighbours)
    torch.set_num_threads(machine["torch_threads"])
    if cuda:
        fault = without_mpi
        if before == 0:  # one rank of a node asks for all
            fault = fault or device_memory_fault(str(device))
        machine["device_memory_fault"] = next(filter(None, comm.allgather(fault)), None)
    return Place(device, nodes, comm.bcast(machine), without_nccl, without_mpi)


def bound(masks: Sequence[Set[int]]) -> bool:
    """Return whether each rank of a node has cores to itself; `masks` are the cores that they may run on."""
    return len(set().union(*masks)) == sum(map(len, masks))


def threads_for(own: Set[int], masks: Sequence[Set[int]]) -> int:
    """Return how many threads torch is given in a rank that may run on the cores `own`: its share of them."""
    return max(1, len(own) // sum(bool(own & other) for other in masks))


def check_gpus(ranks: int, gpus: int, *, share: bool) -> None:
    """Raise a ValueError where ranks would share CUDA devices unasked, or there are none to share."""
    if share and not gpus:
        raise ValueError("share_gpus: there are no CUDA devices that all ranks see")
    if 0 < gpus < ranks and not share:
        raise ValueError(
            f"{ranks} ranks, but {gpus} CUDA device{'s' * (gpus > 1)}: start a rank a device; or --share-gpus, to try "
            "it out (the times are not a cluster's); or CUDA_VISIBLE_DEVICES= in front, to run on the CPUs"
        )


def let_nccl_share(rank: int) -> None:
    """Make NCCL, which refuses two ranks on one GPU, take each rank for a host of its own: it talks by sockets then."""
    os.environ["NCCL_HOSTID"] = f"mpisign-{rank}"


# Prints "claims" if MPI says that it takes device memory, and then "works" if it does.
TRIAL = """
import sys
import torch
from mpi4py import MPI
from mpisign.ranks.machine import cuda_aware

if sys.argv[1] == "cpu" or cuda_aware():
    print("claims", flush=True)
    sent = torch.arange(1 << 20, dtype=torch.int64, device=sys.argv[1])
    received = torch.zeros_like(sent)
    if sent.is_cuda:
        torch.cuda.synchronize()
    MPI.COMM_SELF.Sendrecv(sent, 0, recvbuf=received, source=0)
    if torch.equal(sent, received):
        print("works", flush=True)
"""
_LAUNCHERS_VARIABLES = ("PMI", "OMPI_", "PRTE_", "SLURM_", "HYDRA_", "MPI_LOCAL")


def device_memory_fault(where: str, trial: str = TRIAL, *, seconds: float = 60.0) -> str | None:
    """Say why MPI may not be given memory of the device `where`, or None if it may: it is tried.

    The trial runs in a process of its own, for MPI may crash it. That process is a job of its own, so it sends a
    message to itself. If MPI does not claim that it takes device memory, nothing is tried.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_LAUNCHERS_VARIABLES)}
    try:
        done = subprocess.run(
            [sys.executable, "-c", trial, where], env=environment, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=seconds, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"MPI says that it takes device memory, but a trial did not end in {seconds:.0f} s"
    said = done.stdout.split()
    if "works" in said and done.returncode == 0:
        return None
    if "claims" not in said:
        return "MPI does not say that it takes device memory"
    died = f"died of signal {-done.returncode}" if done.returncode < 0 else "failed"
    return f"MPI says that it takes device memory, but a trial {died}"


@contextlib.contextmanager
def telling_of_memory() -> Iterator[None]:
    """Turn a device's being out of memory into a JobError, one line."""
    import torch

    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        reason = ". ".join(str(error).split(". ")[:2])
        raise launch.JobError(f"{reason}. Fewer pictures a rank need less (--batch-size)") from error
