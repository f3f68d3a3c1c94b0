"""The C function that merges counters, compiled by Numba for MPI to call."""

from __future__ import annotations

from typing import Any

from numba import carray, types

from ..sizes import BLOCK
from .counting import merge_planes
from .jit import callback

# Of MPI_User_function: the two vectors, the number of elements, their datatype.
_SIGNATURE = types.void(
    types.CPointer(types.uint64), types.CPointer(types.uint64), types.CPointer(types.intc), types.voidptr
)


def merge_callback(K: int) -> Any:
    """Compile the C function with MPI_User_function's arguments that merges counters of K planes."""
    size = K * BLOCK

    @callback(_SIGNATURE)
    def merge(a: Any, b: Any, count: Any, datatype: Any) -> None:
        n = count[0] * size
        merge_planes(carray(a, n), carray(b, n), K)

    return merge
