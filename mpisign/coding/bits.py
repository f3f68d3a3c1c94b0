"""The wire format: signs of float32 as uint64 words.

Bit i of the vector is bit i % 64 of word i // 64; 1 means negative. `x < 0` decides, so 0, -0.0 and NaN are +1.
The bits past the last coordinate (padding) are 0.
The kernels are loaded at the first call, for Numba takes a second to import.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import ties
from .rules import Rule, check_rule
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


def sign(
    gradient: Any, words: Words, *, rule: Rule, momentum: Any = None, moved: Any = None, zeros: Words | None = None,
    faults: NDArray[np.int64] | None = None, key: int = 0,
) -> None:  # fmt: skip
    """Sign a gradient by a rule and move its momentum, in one pass over memory.

    For each coordinate, with every operation rounded to float32: d = g - m; if that is not finite, the gradient counts
    as 0: d = 0 - m. Then u = m + (1 - vote) d and m becomes m + (1 - keep) d. The bit is 1 where
    u + scale * dither < 0. So a finite momentum stays finite, whatever the gradient is.

    Args:
        gradient: float32 (n,).
        words: uint64 (W,), receives the signs; the padding is 0.
        rule: See `rules.Rule`.
        momentum: float32 (n,), finite; None for a rule that has none.
        moved: float32 (n,), receives the new momentum; None: `momentum` itself does.
        zeros: uint64 (W,), receives 1 where u is 0, before the dither; the padding is 0.
        faults: int64 (1,), to which the number of coordinates is added that were not finite.
        key: 64 bits that seed the dither.

    Raises:
        ValueError: an array has another dtype or shape, or is not contiguous; the rule is faulty, or there is a
            momentum where the rule has none, or none where it has one.

    """
    gradient = floats_of("gradient", gradient)
    n = len(gradient)
    check_rule(rule)
    check_momentum(rule, momentum, moved)
    momentum = momentum if momentum is None else _floats(n, "momentum", momentum)
    moved = momentum if moved is None else _floats(n, "moved", moved)
    zeros = zeros if zeros is None else words_of("zeros", zeros, words_for(n))
    found = sign_part(gradient, words_of("words", words, words_for(n)), rule, momentum, moved, zeros, key, 0)
    if faults is not None:
        faults += found


def check_momentum(rule: Rule, momentum: Any, moved: Any) -> None:
    """Raise a ValueError if `momentum` is not there and the rule has one, or the other way."""
    if rule.has_momentum != (momentum is not None):
        raise ValueError(f"momentum: the rule {rule.name} has {'one' if rule.has_momentum else 'none'}")
    if moved is not None and momentum is None:
        raise ValueError("moved: there is no momentum to move")


def _floats(n: int, name: str, x: Any) -> Floats:
    array = floats_of(name, x)
    if len(array) != n:
        raise ValueError(f"{name}: has {len(array)} coordinates, gradient has {n}")
    return array


def sign_part(
    gradient: Floats, words: Words, rule: Rule, momentum: Floats | None, moved: Floats | None, zeros: Words | None,
    key: int, first: int,
) -> int:  # fmt: skip
    """Do what `sign` does, unchecked, on the part of a vector from coordinate `first`; return the number of faults."""
    from .kernels import packing

    n, whole = len(gradient), len(gradient) // BITS
    keep, vote = np.float32(1 - rule.keep), None if rule.vote == rule.keep else np.float32(1 - rule.vote)
    law = keep, vote, rule.dither == "normal", np.float32(rule.scale) if rule.dither else None, np.uint64(key)
    faults = packing.sign_words(gradient, momentum, moved, words[:whole], zeros, first, *law)
    if n % BITS:
        at = BITS * whole
        g, m = _filled_up(gradient[at:]), None if momentum is None else _filled_up(momentum[at:])
        faults += packing.sign_words(
            g, m, m, words[whole:], None if zeros is None else zeros[whole:], first + at, *law
        )  # fmt: skip
        if m is not None and moved is not None:
            moved[at:] = m[: n % BITS]
        for told in (words,) if zeros is None else (words, zeros):
            clear_padding(told, n)
    return int(faults)


def _filled_up(x: Floats) -> Floats:
    return np.concatenate([x, np.zeros(BITS - len(x), np.float32)])


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


def fill_zeros(words: Words, zeros: Words, key: int) -> None:
    """Set the bits of `words` that `zeros` marks where a coin of `key` falls so, in place; both uint64 (W,).

    Unchecked. The key may be the one of a dither: it is scrambled once more, so the coins are others.
    """
    from .kernels import packing

    packing.fill_zeros(words, zeros, np.uint64(ties.mix(key)))


def silent(x: NDArray[Any], sizes: Sequence[int]) -> NDArray[np.bool_]:
    """Return which parts of `x`, (n,), the bits of floats as signed integers, are all 0 or -0.0. Unchecked."""
    from .kernels import packing

    found = np.empty(len(sizes), np.bool_)
    packing.silent_parts(x, np.asarray(sizes, np.int64), found)
    return found


def count_ones(words: Words) -> int:
    """Return the number of ones in `words`, uint64 (W,). Unchecked."""
    from .kernels import packing

    return int(packing.count_ones(words))


def count_differing(a: Words, b: Words) -> int:
    """Return in how many bits `a` and `b`, uint64 (W,), differ. Unchecked."""
    from .kernels import packing

    return int(packing.count_differing(a, b))
