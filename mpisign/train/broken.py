"""Pictures that cannot be decoded: they end the job, or are named and left out."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ..ranks.launch import JobError
from ..workload.data import Pictures

if TYPE_CHECKING:
    from torch import Tensor

    from ..ranks.launch import Comm


class Broken:
    """The pictures that this rank could not decode; `skip` leaves them out, else the first one ends the job."""

    def __init__(self, comm: Comm, *, skip: bool) -> None:
        self.comm, self.skip = comm, skip
        self._faults: set[str] = set()

    def heed(self, pictures: Pictures, labels: Tensor, numbers: Tensor) -> None:
        """Look for broken pictures in a batch.

        Raises:
            JobError: on this rank alone: there is one, and it is not to be left out.

        """
        for number in numbers[labels == Pictures.BROKEN].tolist():
            fault = pictures.fault(number)
            if not self.skip:
                raise JobError(f"{fault} (--broken skip leaves such pictures out)")
            if fault not in self._faults:
                self._faults.add(fault)
                print(f"mpisign.train: rank {self.comm.rank} leaves out {fault}", file=sys.stderr, flush=True)

    def count(self) -> int:
        """Return how many pictures all ranks have left out. Collective."""
        return len(set().union(*self.comm.allgather(self._faults)))
