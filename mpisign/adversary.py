"""What a traitor sends instead of its signs. Words to words, in place; no rank sees another's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .bits import Words, clear_padding


def invert(words: Words, n: int, coins: np.random.Generator) -> None:
    """Send the opposite of every sign: the strongest blind adversary (arXiv 1810.05291, theorem 2)."""
    np.invert(words, out=words)
    clear_padding(words, n)


def random(words: Words, n: int, coins: np.random.Generator) -> None:
    """Send a fair coin for every coordinate."""
    words[:] = coins.integers(0, 2**64, len(words), np.uint64)
    clear_padding(words, n)


def zero(words: Words, n: int, coins: np.random.Generator) -> None:
    """Send constant bits, as a rank whose gradient is 0: +1 for every coordinate."""
    words[:] = 0


ADVERSARIES: dict[str, Callable[[Words, int, np.random.Generator], None]] = {
    "invert": invert,
    "random": random,
    "zero": zero,
}


def traitors(number: int, P: int, seed: int) -> list[int]:
    """Choose `number` of P ranks, the same for the same seed.

    Raises:
        ValueError: there are fewer ranks than traitors, or `number` is negative.

    """
    if not 0 <= number <= P:
        raise ValueError(f"adversaries: {number} of {P} ranks cannot be traitors")
    return sorted(np.random.default_rng(seed).permutation(P)[:number].tolist())
