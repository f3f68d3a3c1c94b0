"""Which ranks share a node."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpi4py import MPI


def split_by_node(comm: MPI.Comm) -> MPI.Comm:
    """Return the communicator of the ranks of `comm` that share this rank's memory; the caller frees it."""
    from mpi4py import MPI

    return comm.Split_type(MPI.COMM_TYPE_SHARED, comm.rank)


def nodes_of(comm: MPI.Comm) -> list[int]:
    """Return the number of its node for each rank of `comm`, nodes numbered by their first rank. Collective."""
    node = split_by_node(comm)
    leaders = comm.allgather(node.bcast(comm.rank))
    node.Free()
    order = sorted(set(leaders))
    return [order.index(leader) for leader in leaders]
