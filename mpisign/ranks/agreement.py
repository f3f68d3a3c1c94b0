"""How ranks agree: on a fault of any of them, on what they ask for, on the bits they hold. Collective, all of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from . import patience, watch
from .launch import refuse
from .options import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .launch import Comm


T = TypeVar("T")


class Gathering(Protocol):
    """What agreement asks of a communicator: mpi4py's have it, and the carriers of votes."""

    def allgather(self, thing: Any, /) -> list[Any]:
        """Gather a Python object from each rank."""


def first_fault(comm: Gathering, fault: str | None) -> str | None:
    """Return the fault of the first rank that has one, the same line on all ranks; None if there is none. Collective.

    The line names the rank, unless the fault is the same on all of them.
    """
    faults = comm.allgather(fault)
    for rank, text in enumerate(faults):
        if text is not None:
            everywhere = all(other == text for other in faults)
            return str(text) if everywhere else f"{text} (on rank {rank})"
    return None


@contextlib.contextmanager
def refusing(comm: Comm, program: str) -> Iterator[None]:
    """End on all ranks if the block raises a ValueError on any; the first one is printed. Collective at its end."""
    fault = None
    try:
        yield
    except ValueError as error:
        fault = str(error)
    fault = first_fault(comm, fault)
    if fault is not None:
        refuse(program, fault, comm)


def understood(comm: Comm, program: str, asked: T | UsageError) -> T:
    """Return what was asked for; end on all ranks if any was asked wrongly. Collective, the first thing.

    Whatever programs of ours the ranks run, they meet here.
    """
    watch.wait_for_all(comm, program)
    fault = first_fault(comm, str(asked) if isinstance(asked, UsageError) else None)
    if fault is not None or isinstance(asked, UsageError):
        refuse(program, str(fault), comm)
    return asked


def start_alike(comm: Comm, program: str, started: Mapping[str, Any]) -> None:
    """End on all ranks unless all were started alike: the same program, options, software. Collective.

    `started` has what must agree by the name that a user knows it by.
    """
    if len(set(comm.allgather(repr(sorted(started.items()))))) > 1:
        refuse(program, f"the ranks were not started alike: {unlike(comm.allgather(started))}", comm)


def unlike(everyones: Sequence[Mapping[str, Any]]) -> str:
    """Say in what ranks differ from rank 0, and which one is the first that does."""
    first, said = everyones[0], []
    for name in dict.fromkeys(name for one in everyones for name in one):
        other = next((rank for rank, one in enumerate(everyones) if one.get(name) != first.get(name)), None)
        if other is not None:
            said.append(f"{name} is {first.get(name)} on rank 0 and {everyones[other].get(name)} on rank {other}")
            if name == "the program":
                break  # which has other options
    return "; ".join(said)


def agree(comm: Gathering, asked: object, check: Callable[[], None]) -> None:
    """Raise a ValueError on all ranks if `check` does on any, or if they ask for different things. Collective."""
    fault = None
    try:
        check()
    except ValueError as error:
        fault = str(error)
    fault = first_fault(comm, fault)
    if fault is not None:
        raise ValueError(fault)
    wishes = comm.allgather(asked)
    if any(wish != asked for wish in wishes):
        raise ValueError(f"ranks ask for different votes: {sorted({str(wish) for wish in wishes})}")


def differs(comm: Comm, results: Sequence[NDArray[np.float32]]) -> int:
    """Count the results that are not rank 0's, bit for bit. Collective."""
    import hashlib

    mine = [hashlib.sha256(result.data).digest() for result in results]
    patience.quiet_barrier(comm)
    return sum(digest != first for digest, first in zip(mine, comm.bcast(mine), strict=True))


def same_everywhere(comm: Comm, arrays: Iterator[NDArray[np.float32]]) -> bool:
    """Tell whether all ranks hold the same bits. Collective."""
    import hashlib

    import numpy as np

    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return len(set(comm.allgather(digest.digest()))) == 1
