"""What each rank says of itself beside the words of a bucket: a few numbers, and on which parameters it is absent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..coding.sizes import BITS, ROLL_HEADER, roll_for

if TYPE_CHECKING:
    from ..coding.bits import Words

FULL = np.uint64(2**64 - 1)


class Roll:
    """The lines of P ranks about a bucket of so many parameters; a line is uint64 words: a header, and a bit a part.

    `write` sets this rank's; a vote gathers them all. The attributes tell what was gathered last: `turns`, `agreed`
    and `faults` are int64 (P,), `absent` is bool (P, parts).
    """

    def __init__(self, parts: int, P: int) -> None:
        self.parts = parts
        self.mine = np.zeros(roll_for(parts), np.uint64)
        self.lines = np.zeros((P, roll_for(parts)), np.uint64)
        self.turns, self.agreed, self.faults = self.lines.view(np.int64)[:, :ROLL_HEADER].T  # views
        self._bits = self.lines[:, ROLL_HEADER:]

    def write(self, *, turn: int, agreed: int, faults: int, absent: NDArray[np.bool_]) -> None:
        """Say of this rank: which vote this is for it, two counts, and the parameters it is absent on, bool (parts,).

        Raises:
            ValueError: `absent` has another shape.

        """
        if absent.shape != (self.parts,):
            raise ValueError(f"absent: expected shape ({self.parts},), got {absent.shape}")
        self.mine.view(np.int64)[:ROLL_HEADER] = turn, agreed, faults
        packed = np.packbits(absent, bitorder="little")
        self.mine[ROLL_HEADER:].view(np.uint8)[: len(packed)] = packed

    @property
    def absent(self) -> NDArray[np.bool_]:
        return self._absent(self.lines)

    @property
    def absent_here(self) -> NDArray[np.bool_]:
        """What this rank has written of itself, bool (parts,)."""
        mine: NDArray[np.bool_] = self._absent(self.mine[None])[0]
        return mine

    @property
    def some_absent(self) -> bool:
        """Whether any rank is absent on any parameter."""
        return bool(self._bits.any())

    def _absent(self, lines: Words) -> NDArray[np.bool_]:
        packed = np.ascontiguousarray(lines[:, ROLL_HEADER:]).view(np.uint8)
        bits: NDArray[np.uint8] = np.unpackbits(packed, axis=1, count=self.parts, bitorder="little")
        return bits.view(np.bool_)

    def check(self) -> None:
        """Raise a ValueError, the same on all ranks, if this was not the same turn for all of them."""
        turns = self.turns.tolist()
        if turns.count(turns[0]) != len(turns):
            told = ", ".join(f"{turn} on rank {turns.index(turn)}" for turn in dict.fromkeys(turns))
            raise ValueError(f"ranks vote on different buckets or steps: turn {told}; all must take the same steps")


def edges_of(sizes: Sequence[int]) -> NDArray[np.int64]:
    """Return where the parts of so many coordinates begin, and the end of the last one: int64 (parts + 1,)."""
    return np.cumsum([0, *sizes], dtype=np.int64)


def pieces(chosen: NDArray[np.bool_], sizes: Sequence[int]) -> list[slice]:
    """Return where the chosen parts, of so many coordinates each, lie in a vector."""
    if not chosen.any():
        return []
    edges = edges_of(sizes)
    return [slice(int(edges[part]), int(edges[part + 1])) for part in np.flatnonzero(chosen)]


def mask(chosen: NDArray[np.bool_], edges: NDArray[np.int64], *, first: int, W: int) -> Words:
    """Return the words `first` to `first` + W of a vector with 1 at the coordinates of the chosen parts, uint64 (W,).

    `chosen` is bool (parts,), `edges` as from `edges_of`; chosen parts that touch are filled in one go.
    """
    words = np.zeros(W, np.uint64)
    flips = np.flatnonzero(np.diff(chosen, prepend=False, append=False))
    bounds = np.clip(edges[flips] - first * BITS, 0, W * BITS).reshape(-1, 2)
    for (head, low), (tail, high) in np.stack(np.divmod(bounds, BITS), axis=-1).tolist():
        # All bits below the end, without all below the start.
        words[head:tail] ^= FULL
        for word, bits in ((head, low), (tail, high)):
            if bits:
                words[word] ^= np.uint64((1 << bits) - 1)
    return words
