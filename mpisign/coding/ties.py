"""How a tie is broken, which only an even number of ranks can have: the rules, and what seeds the coins."""

from __future__ import annotations

from typing import NamedTuple

TIES = ("positive", "random", "zero")


# SplitMix64 (https://prng.di.unimi.it/splitmix64.c): its step and the two factors of its finalizer.
GOLDEN, MIX_30, MIX_27 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
MASK = 2**64 - 1


class Tie(NamedTuple):
    """How a tie is broken: the rule and, for `random`, what seeds the coins."""

    rule: str = "positive"
    seed: int = 0
    step: int = 0


def coin_key(tie: Tie) -> int:
    """Return the 64 bits that seed the coins of one step: two rounds of SplitMix64's finalizer."""
    return mix((mix(tie.seed & MASK) + tie.step) & MASK)


def mix(x: int) -> int:
    """Scramble 64 bits: SplitMix64's finalizer."""
    x = ((x ^ (x >> 30)) * MIX_30) & MASK
    x = ((x ^ (x >> 27)) * MIX_27) & MASK
    return x ^ (x >> 31)


def check_tie(rule: str) -> None:
    """Raise a ValueError if `rule` is not in TIES."""
    if rule not in TIES:
        raise ValueError(f"tie: unknown rule {rule!r}, choose from {', '.join(TIES)}")
