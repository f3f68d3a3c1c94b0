"""How ranks agree: on a fault of any of them, on what they ask for, on the bits they hold. Collective, all of it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from . import patience
from .launch import refuse

if TYPE_CHECKING:
    import numpy as np
    from mpi4py import MPI
    from numpy.typing import NDArray


@contextlib.contextmanager
def refusing(comm: MPI.Comm, program: str) -> Iterator[None]:
    """End on all ranks if the block raises a ValueError on any; the first one is printed. Collective at its end."""
    fault = None
    try:
        yield
    except ValueError as error:
        fault = str(error)
    faults = comm.allgather(fault)
    for rank, told in enumerate(faults):
        if told is not None:
            everywhere = all(other == told for other in faults)
            refuse(program, told if everywhere else f"{told} (on rank {rank})", comm.rank)


def agree(comm: Any, asked: object, check: Callable[[], None]) -> None:
    """Raise a ValueError on all ranks if `check` does on any, or if they ask for different things. Collective."""
    fault = None
    try:
        check()
    except ValueError as error:
        fault = str(error)
    told = comm.allgather((fault, asked))
    for rank, (other, _) in enumerate(told):
        if other is not None:
            raise ValueError(other if fault == other else f"{other} (on rank {rank})")
    if any(other != asked for _, other in told):
        raise ValueError(f"ranks ask for different votes: {sorted({str(other) for _, other in told})}")


def differs(comm: MPI.Comm, result: NDArray[np.float32]) -> int:
    """Return 1 where a result is not rank 0's, bit for bit, else 0. Collective."""
    digest = hashlib.sha256(result.data).digest()
    patience.quiet_barrier(comm)
    return int(digest != comm.bcast(digest))


def same_everywhere(comm: MPI.Comm, arrays: Iterator[NDArray[np.float32]]) -> bool:
    """Tell whether all ranks hold the same bits. Collective."""
    import numpy as np

    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return len(set(comm.allgather(digest.digest()))) == 1
