"""The Numba kernels that pack and unpack signs. `bits` checks the arguments and calls them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..sizes import BITS
from .jit import kernel
from .simd import lerp_negative64, negative64, signs64

# One core reads memory faster along several streams at once than along one, for each has its own prefetcher.
STREAMS = 4


@kernel
def pack_words(x: Any, words: Any) -> None:
    """Set each word to the signs of its 64 floats."""
    part = len(words) // STREAMS
    for i in range(part):
        for s in range(STREAMS):
            words[s * part + i] = negative64(x, BITS * (s * part + i))
    for i in range(STREAMS * part, len(words)):
        words[i] = negative64(x, BITS * i)


@kernel
def momentum_pack_words(momentum: Any, gradient: Any, weight: Any, words: Any) -> None:
    """Set m <- m + weight * (g - m), and each word to the signs of its 64 floats of m."""
    for i in range(len(words)):
        words[i] = lerp_negative64(momentum, gradient, BITS * i, weight)


@kernel
def unpack_words(words: Any, ties: Any, x: Any) -> None:
    """Set the 64 floats of each word to +1 and -1, and to 0 where `ties`, if it is not empty, has a 1."""
    for i in range(len(words)):
        signs64(words[i], ties[i] if len(ties) else np.uint64(0), x, BITS * i)
