"""The words of a vote carried by torch.distributed instead of MPI: what an exchange asks of a communicator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from .bits import Words

if TYPE_CHECKING:
    from mpi4py import MPI


class GroupComm:
    """A process group (NCCL, Gloo) with the face of an mpi4py communicator, as far as two exchanges ask for it.

    The ranks are those of `comm`, by which they also agree before a vote. NCCL takes the words on `device`: they are
    copied there and back. Collective.
    """

    def __init__(self, comm: MPI.Comm, backend: str, device: torch.device) -> None:
        self._comm, self._backend, self._device = comm, backend, device if backend == "nccl" else torch.device("cpu")
        self._group: Any = None
        self.size, self.rank, self.patient = comm.size, comm.rank, True  # torch.distributed waits asleep in any case

    def Dup(self) -> GroupComm:
        """Return a group of its own, with its own order of collectives."""
        new = GroupComm(self._comm.Dup(), self._backend, self._device)
        new._group = dist.new_group(backend=self._backend)
        return new

    def Free(self) -> None:
        """Free what Dup made."""
        dist.destroy_process_group(self._group)
        self._comm.Free()

    def allgather(self, thing: Any) -> list[Any]:
        """Gather a Python object from all ranks."""
        return self._comm.allgather(thing)

    def Alltoall(self, sent: Words, received: Words) -> None:
        """Send each rank its block of `sent`; `received` is of the same size."""
        there = self._empty(received.size)
        dist.all_to_all_single(there, self._there(sent), group=self._group)
        self._back(there, received)

    def Allgather(self, sent: Any, received: Words) -> None:
        """Gather blocks of words: `sent`, or with MPI.IN_PLACE what stands in this rank's row of `received`."""
        mine = sent if isinstance(sent, np.ndarray) else received[self.rank].copy()
        there = self._empty(received.size)
        dist.all_gather_into_tensor(there, self._there(mine), group=self._group)
        self._back(there, received)

    def _there(self, words: Words) -> Tensor:
        return torch.from_numpy(words.reshape(-1).view(np.int64)).to(self._device)

    def _empty(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.int64, device=self._device)

    def _back(self, there: Tensor, words: Words) -> None:
        torch.from_numpy(words.reshape(-1).view(np.int64)).copy_(there)
