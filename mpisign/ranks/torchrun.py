"""Ranks without MPI: those that torchrun has started, or whoever else sets its variables."""

from __future__ import annotations

import itertools
import os
import pickle
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from torch.distributed import Work

# By which ranks find each other ("env://" of torch.distributed).
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LAUNCHERS = ("torchrun", "env://")
_SESSIONS = itertools.count()
_TORCHRUN = "TORCHELASTIC_RUN_ID"  # torchrun sets it
_MPI = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")  # what an mpirun sets


def launcher() -> str | None:
    """Return "torchrun" if that has started this process, "env://" if others have set its variables, None under MPI.

    A job script may export these variables and then call mpirun.
    """
    if not all(os.environ.get(name) for name in VARIABLES):
        return None
    if _TORCHRUN in os.environ:
        return LAUNCHERS[0]
    return None if any(name in os.environ for name in _MPI) else LAUNCHERS[1]


class TorchComm:
    """What the commands ask of a communicator, under mpi4py's names, over sockets (Gloo).

    It is there before the default process group, whose backend the ranks have yet to agree on, and stays beside it.
    Gloo waits asleep. Arrays are contiguous; objects are pickled, and each goes to all ranks, so they should be small.
    """

    def __init__(self) -> None:
        from datetime import timedelta

        from torch.distributed import PrefixStore, ProcessGroupGloo  # type: ignore[attr-defined]
        from torch.distributed.rendezvous import rendezvous

        if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # Gloo would look up the host's name
        store, self.rank, self.size = next(rendezvous("env://"))
        # Each has names of its own in the store, which keeps those of a session that is over.
        self.store = PrefixStore(f"mpisign {next(_SESSIONS)}", store)
        own = PrefixStore("commands", self.store)
        self._group: Any = ProcessGroupGloo(own, self.rank, self.size, timedelta(minutes=30))

    def Abort(self, code: int) -> None:
        """End this process at once; torchrun ends the others."""
        os._exit(code)

    def first_to_fail(self) -> bool:
        """Tell whether no rank has asked this before: what other ranks meet then follows from the first fault."""
        try:
            return bool(self.store.add("faults", 1) == 1)
        except RuntimeError:  # the store is gone, with its rank
            return True

    def Barrier(self) -> None:
        """Wait for all ranks."""
        self.Ibarrier().Wait()

    def Ibarrier(self) -> Request:
        """Start a barrier."""
        return Request(self._group.barrier())

    def allgather(self, thing: Any) -> list[Any]:
        """Gather a Python object from each rank."""
        import numpy as np

        mine = np.frombuffer(pickle.dumps(thing), np.uint8)
        lengths = np.empty(self.size, np.int64)
        self.Allgather(np.array([len(mine)]), lengths)
        padded = np.zeros(lengths.max(), np.uint8)
        padded[: len(mine)] = mine
        rows = np.empty((self.size, len(padded)), np.uint8)
        self.Allgather(padded, rows)
        return [_unpickled(row[:length]) for row, length in zip(rows, lengths, strict=True)]

    def gather(self, thing: Any, root: int = 0) -> list[Any] | None:
        """Gather a Python object from each rank on the root; the others get None."""
        everyones = self.allgather(thing)
        return everyones if self.rank == root else None

    def bcast(self, thing: Any, root: int = 0) -> Any:
        """Return the root's object."""
        return self.allgather(thing if self.rank == root else None)[root]

    def allreduce(self, number: Any) -> Any:
        """Return the sum of all ranks' numbers."""
        return sum(self.allgather(number))

    def send(self, thing: Any, dest: int) -> None:
        """Send a Python object."""
        import numpy as np

        mine = np.frombuffer(pickle.dumps(thing), np.uint8)
        self.Send(np.array([len(mine)]), dest)
        self.Send(mine, dest)

    def recv(self, source: int) -> Any:
        """Receive a Python object."""
        import numpy as np

        length = np.empty(1, np.int64)
        self.Recv(length, source)
        theirs = np.empty(length[0], np.uint8)
        self.Recv(theirs, source)
        return _unpickled(theirs)

    def Send(self, sent: NDArray[Any], dest: int) -> None:
        """Send an array."""
        self._group.send([_octets(sent)], dest, 0).wait()

    def Recv(self, received: NDArray[Any], source: int) -> None:
        """Receive an array."""
        self._group.recv([_octets(received)], source, 0).wait()

    def Bcast(self, array: NDArray[Any], root: int) -> None:
        """Set an array to the root's."""
        self._group.broadcast(_octets(array), root).wait()

    def Allgather(self, sent: NDArray[Any], received: NDArray[Any]) -> None:
        """Gather an array from each rank: row r of `received`, or its r-th part, is rank r's."""
        if sent.nbytes:
            rows = list(_octets(received).view(self.size, -1).unbind())
            self._group.allgather([rows], [_octets(sent)]).wait()

    def Alltoall(self, sent: NDArray[Any], received: NDArray[Any]) -> None:
        """Send row r of `sent` to rank r; row r of `received` is rank r's for this one."""
        if sent.nbytes:
            self._group.alltoall_base(_octets(received), _octets(sent), [], []).wait()

    def Alltoallv(self, sent: list[Any], received: list[Any]) -> None:
        """Send parts of unlike length: `sent` and `received` are [array, the number of elements of each part]."""
        (array, counts), (into, those) = sent, received
        splits = [[int(count) * array.itemsize for count in part] for part in (those, counts)]
        self._group.alltoall_base(_octets(into), _octets(array), *splits).wait()

    def Allreduce(self, sent: NDArray[Any], received: NDArray[Any]) -> None:
        """Set `received` to the sum of all ranks' arrays."""
        self.Iallreduce(sent, received).Wait()

    def Iallreduce(self, sent: NDArray[Any], received: NDArray[Any]) -> Request:
        """Start the sum of all ranks' arrays."""
        import torch

        received[...] = sent
        return Request(self._group.allreduce([torch.from_numpy(received)]))


class Request:
    """What was started and is not yet waited for."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def Test(self) -> bool:
        """Tell whether it is done."""
        if not self._work.is_completed():
            return False
        self._work.wait()  # it may have failed
        return True

    def Wait(self) -> None:
        """Wait until it is done."""
        self._work.wait()


def _octets(array: NDArray[Any]) -> Tensor:
    """Return the bytes of an array, in its own memory."""
    import warnings

    import numpy as np
    import torch

    if not array.flags.c_contiguous:
        raise ValueError("array: must be contiguous")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what is sent may be read-only: nobody writes to it
        return torch.from_numpy(array.reshape(-1).view(np.uint8))


def _unpickled(octets: NDArray[np.uint8]) -> Any:
    return pickle.loads(octets.tobytes())  # noqa: S301 - from our own ranks
