"""The Numba kernels that pack and unpack signs. `bits` checks the arguments and calls them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..rules import BYTES, NORMAL_MEAN, NORMAL_UNIT, PAIRS, UNIFORM_MEAN, UNIFORM_UNIT
from ..sizes import BITS
from .counting import coins
from .jit import kernel
from .simd import finite64, negative64, ones, sign64, signs64

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
def _dither(key: Any, first: int, normal: bool, noise: Any) -> None:
    """Set the 64 floats of `noise` to the dither of the coordinates from `first` on; see `rules.Rule`."""
    for j in range(BITS):
        x = coins(key, first + j)
        if normal:
            pairs = (x & np.uint64(BYTES)) + ((x >> np.uint64(8)) & np.uint64(BYTES))
            total = (pairs * np.uint64(PAIRS)) >> np.uint64(48)
            noise[j] = np.float32(np.int32(total) - np.int32(NORMAL_MEAN)) * np.float32(NORMAL_UNIT)
        else:
            noise[j] = np.float32(np.int32(x >> np.uint64(40))) * np.float32(UNIFORM_UNIT) - np.float32(UNIFORM_MEAN)


@kernel
def _mend(gradient: Any, momentum: Any, at: int, mended: Any) -> int:
    """Set `mended` to 64 floats from `at` on, but to 0 where g - m is not finite, and return how many these are."""
    faults = 0
    for j in range(BITS):
        g = gradient[at + j]
        d = g - momentum[at + j] if momentum is not None else g
        finite = np.isfinite(d)
        mended[j] = g if finite else np.float32(0)
        faults += not finite
    return faults


@kernel
def sign_words(
    gradient: Any, momentum: Any, moved: Any, words: Any, zeros: Any, first: int,
    keep: Any, vote: Any, normal: bool, scale: Any, key: Any,
) -> int:  # fmt: skip
    """Sign the 64 floats of each word and return how many are not finite, which count as 0: see `simd.sign64`.

    `zeros` may be None, as `momentum` and `moved`, `vote` and `scale`: each such choice is compiled of its own, so none
    costs where it is not asked for. `first` is the place of float 0 in the whole vector, for the dither.
    """
    faults = 0
    noise, mended = np.empty(BITS, np.float32), np.empty(BITS, np.float32)
    for i in range(len(words)):
        at = BITS * i
        if scale is not None:
            _dither(key, first + at, normal, noise)
        if finite64(gradient, momentum, at):
            negative, zero = sign64(gradient, at, momentum, moved, at, keep, vote, noise, scale)
        else:
            faults += _mend(gradient, momentum, at, mended)
            negative, zero = sign64(mended, 0, momentum, moved, at, keep, vote, noise, scale)
        words[i] = negative
        if zeros is not None:
            zeros[i] = zero
    return faults


@kernel
def unpack_words(words: Any, ties: Any, x: Any) -> None:
    """Set the 64 floats of each word to +1 and -1, and to 0 where `ties`, if it is not empty, has a 1."""
    for i in range(len(words)):
        signs64(words[i], ties[i] if len(ties) else np.uint64(0), x, BITS * i)


@kernel
def silent_parts(x: Any, sizes: Any, silent: Any) -> None:
    """Set `silent` where a part of `x`, the bits of floats as signed integers of their size, is all 0 or -0.0."""
    magnitude, start = np.iinfo(x.dtype).max, 0
    for part in range(len(sizes)):
        at, stop, folded = start, start + sizes[part], 0
        while at < stop and not folded & magnitude:
            for i in range(at, min(at + BITS, stop)):
                folded |= x[i]
            at += BITS
        silent[part] = not folded & magnitude
        start = stop


@kernel
def count_ones(words: Any) -> int:
    """Return how many bits of all words are 1."""
    total = 0
    for i in range(len(words)):
        total += ones(words[i])
    return total


@kernel
def count_differing(a: Any, b: Any) -> int:
    """Return how many bits of the words of `a` are not those of `b`."""
    total = 0
    for i in range(len(a)):
        total += ones(a[i] ^ b[i])
    return total


@kernel
def fill_zeros(words: Any, zeros: Any, key: Any) -> None:
    """Set the bits of `words` where `zeros` has a 1 and a coin falls so; word w throws coins number w."""
    for w in range(len(words)):
        if zeros[w]:
            words[w] |= zeros[w] & coins(key, w)
