"""Where a rank runs: its device, its share of the cores, and what a record tells of the machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import mpi, records

if TYPE_CHECKING:
    import torch
    from mpi4py import MPI


@dataclass(frozen=True)
class Place:
    """What a rank found: its device, each rank's node number, and rank 0's facts for the record."""

    device: torch.device
    nodes: list[int]
    machine: dict[str, Any]
    without_nccl: str | None  # why NCCL can't run here

    @property
    def backend(self) -> str:
        """The backend of torch.distributed."""
        return "nccl" if self.without_nccl is None else "gloo"

    @property
    def one_node(self) -> bool:
        """Whether all ranks share a node."""
        return len(set(self.nodes)) == 1


def find(comm: MPI.Comm) -> Place:
    """Look at the machine, give this rank its device and torch its threads. Collective.

    What one rank can't do, none does: all run on the same kind of device.

    Raises:
        ValueError: MPI was started with too low a thread level.

    """
    import torch

    from .baselines import nccl_fault

    mpi.check_threads()
    nodes = mpi.nodes_of(comm)
    mine, before = nodes[comm.rank], nodes[: comm.rank].count(nodes[comm.rank])
    own = torch.device("cuda", before % torch.cuda.device_count()) if torch.cuda.is_available() else None
    # A rank may see all devices of its node, or only the one that the scheduler gave it.
    uuids = comm.allgather(None if own is None else str(torch.cuda.get_device_properties(own).uuid))
    cuda = None not in uuids and len(set(uuids)) == comm.size
    without_nccl = next(filter(None, comm.allgather(nccl_fault(cuda))), None)
    device = own if cuda and own else torch.device("cpu")
    affinity = os.sched_getaffinity(0)
    neighbours = [other for node, other in zip(nodes, comm.allgather(affinity), strict=True) if node == mine]
    if cuda:
        torch.cuda.set_device(device)
    machine = comm.bcast(records.machine() if comm.rank == 0 else None) | mpi.facts(comm)
    machine |= {"nodes": len(set(nodes)), "cores": len(set().union(*neighbours))}
    machine["device"] = torch.cuda.get_device_name(device) if cuda else machine["cpu"]
    machine["ranks_per_core"] = len(neighbours) / machine["cores"]
    machine["torch_threads"] = max(1, len(affinity) // sum(bool(affinity & other) for other in neighbours))
    torch.set_num_threads(machine["torch_threads"])
    return Place(device, nodes, comm.bcast(machine), without_nccl)
