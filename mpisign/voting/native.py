"""The MPI operation that merges counters: compiled by Numba, called by MPI without Python.

MPI may cut a reduction between elements, so an element is a whole block of counters (K planes of BLOCK words).
"""

from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING, Any

from ..coding.sizes import BLOCK

if TYPE_CHECKING:
    from mpi4py import MPI


@functools.cache
def merge_function(K: int) -> Any:
    """Compile the C function with MPI_User_function's arguments that merges counters of K planes."""
    from ..coding.kernels.merging import merge_callback

    return merge_callback(K)


class CounterSum:
    """An MPI operation and its datatype: `comm.Allreduce(IN_PLACE, [planes, G, sum.datatype], sum.op)`.

    `planes` is uint64 (G, K, BLOCK); the sum must fit into K planes. Free it when done.
    """

    def __init__(self, K: int) -> None:
        from mpi4py import MPI

        self._function = merge_function(K)  # MPI keeps its address only
        # From the library that mpi4py itself calls: it is loaded locally, CDLL(None) would not find it.
        create = ctypes.CDLL(MPI.__file__).MPI_Op_create
        create.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
        self.op: MPI.Op = MPI.Op()
        if create(self._function.address, True, MPI._addressof(self.op)):
            raise RuntimeError("MPI_Op_create failed")
        self.datatype: MPI.Datatype = MPI.UINT64_T.Create_contiguous(K * BLOCK).Commit()

    def free(self) -> None:
        """Give the handles back to MPI."""
        self.op.Free()
        self.datatype.Free()
