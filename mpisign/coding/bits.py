"""The wire format: signs of float32 as uint64 words.

Bit i of the vector is bit i % 64 of word i // 64; 1 means negative. `x < 0` decides, so 0, -0.0 and NaN are +1.
The bits past the last coordinate (padding) are 0.
The kernels are loaded at the first call, for Numba takes a second to import.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .sizes import BITS, words_for

Words = NDArray[np.uint64]
Floats = NDArray[np.float32]


def floats_of(name: str, x: Any) -> Floats:
    """Return `x` as a NumPy view, or raise a ValueError that calls it `name`: float32, (n,), contiguous."""
    array = np.asarray(x)
    if array.dtype != np.float32 or array.ndim != 1 or not array.flags.c_contiguous:
        raise ValueError(
            f"{name}: expected a contiguous float32 vector, got {array.dtype} of shape {array.shape}"
            + ("" if array.flags.c_contiguous else ", not contiguous")
        )
    return array


def words_of(name: str, x: Any, *shape: int | None) -> Words:
    """Return `x` if it is contiguous uint64 of `shape` (None: any length), or raise a ValueError naming it."""
    array = np.asarray(x)
    fits = array.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, array.shape, strict=True))
    if array.dtype != np.uint64 or not fits or not array.flags.c_contiguous:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(
            f"{name}: expected contiguous uint64 words of shape ({wanted}), got {array.dtype} of {array.shape}"
        )
    return array


def pack(x: Any, out: Words | None = None) -> Words:
    """Pack the signs of `x`, float32 (n,), into words, uint64 (W,); `out` receives them if given.

    Raises:
        ValueError: `x` or `out` has another dtype or shape, or is not contiguous.

    """
    from .kernels import packing

    x = floats_of("x", x)
    n = len(x)
    out = np.empty(words_for(n), np.uint64) if out is None else words_of("out", out, words_for(n))
    whole = n // BITS
    packing.pack_words(x, out[:whole])
    if n % BITS:
        last = np.zeros(BITS, np.float32)
        last[: n % BITS] = x[BITS * whole :]
        packing.pack_words(last, out[whole:])
    return out


def momentum_pack(momentum: Any, gradient: Any, beta: float, out: Words | None = None) -> Words:
    """Set m <- m + (1 - beta) * (g - m) in place and pack its signs, in one pass over memory.

    It is Signum's m <- beta * m + (1 - beta) * g (arXiv 1810.05291, algorithm 1) as `torch.lerp` computes it.
    `momentum` and `gradient` are float32 (n,); the words, uint64 (W,), go to `out` if given.

    Raises:
        ValueError: an array has another dtype or shape, or is not contiguous, or beta is not in [0, 1).

    """
    from .kernels import packing

    momentum, gradient = floats_of("momentum", momentum), floats_of("gradient", gradient)
    if len(momentum) != len(gradient):
        raise ValueError(f"momentum: has {len(momentum)} coordinates, gradient has {len(gradient)}")
    if not 0 <= beta < 1:
        raise ValueError(f"beta: must be in [0, 1), got {beta}")
    n = len(gradient)
    out = np.empty(words_for(n), np.uint64) if out is None else words_of("out", out, words_for(n))
    whole, weight = n // BITS, np.float32(1 - beta)
    packing.momentum_pack_words(momentum, gradient, weight, out[:whole])
    if n % BITS:
        last = np.zeros((2, BITS), np.float32)
        last[0, : n % BITS], last[1, : n % BITS] = momentum[BITS * whole :], gradient[BITS * whole :]
        packing.momentum_pack_words(last[0], last[1], weight, out[whole:])
        momentum[BITS * whole :] = last[0, : n % BITS]
    return out


def unpack(words: Words, n: int, out: Any | None = None) -> Floats:
    """Turn words into signs, float32 (n,) of +1 and -1, in `out` if given.

    `words` is uint64 (W,), or (2, W) as the tie rule "zero" gives it: where the second row has a 1, the result is 0.

    Raises:
        ValueError: `words` or `out` has another dtype or shape, or is not contiguous.

    """
    from .kernels import packing

    W = words_for(n)
    planes = words_of("words", np.atleast_2d(words), None, W)
    if np.ndim(words) > 2 or len(planes) > 2:
        raise ValueError(f"words: expected shape ({W},) or (2, {W}), got {np.shape(words)}")
    signs = np.empty(n, np.float32) if out is None else floats_of("out", out)
    if len(signs) != n:
        raise ValueError(f"out: expected {n} coordinates, got {len(signs)}")
    negative, ties = planes[0], planes[1] if len(planes) == 2 else planes[0, :0]
    whole = n // BITS
    packing.unpack_words(negative[:whole], ties[:whole], signs)
    if n % BITS:
        last = np.empty(BITS, np.float32)
        packing.unpack_words(negative[whole:], ties[whole:], last)
        signs[BITS * whole :] = last[: n % BITS]
    return signs


def clear_padding(words: Words, n: int) -> None:
    """Set the bits past coordinate n to 0, in place; `words` is uint64 (W,)."""
    if n % BITS:
        words[-1] &= np.uint64(2 ** (n % BITS) - 1)
