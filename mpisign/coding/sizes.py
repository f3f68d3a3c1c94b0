"""How many words, blocks, planes and shares there are, for n coordinates or W words and P ranks.

A word holds BITS signs; counters lie in blocks of K planes of BLOCK words.
"""

from __future__ import annotations

BITS = 64  # coordinates in a word
WORD = 8  # bytes
BLOCK = 128  # words of a block: the planes stay in the L1 cache, the rows come as runs of 1 KiB
ROLL_HEADER = 3  # words of a rank's line in the roll, before a bit for each parameter: see `voting.roll`


def words_for(n: int) -> int:
    """Return W, the number of words for n coordinates."""
    return -(-n // BITS)


def planes_for(P: int) -> int:
    """Return K, the number of planes that count to P: floor(log2 P) + 1."""
    return P.bit_length()


def blocks_for(W: int) -> int:
    """Return G, the number of blocks for W words."""
    return -(-W // BLOCK)


def share_for(W: int, P: int) -> int:
    """Return S, the words that each of P ranks votes on; P * S >= W."""
    return -(-W // P)


def roll_for(parts: int) -> int:
    """Return the words of a rank's line in the roll of a bucket of so many parameters."""
    return ROLL_HEADER + words_for(parts)
