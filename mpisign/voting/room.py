"""Memory in which the plans of several states take turns, bucket by bucket: only one of them votes at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..coding.bits import Words

ALIGNED = 8  # words: a cache line


class Room:
    """Words on the host, of as many bytes as the largest plan of each bucket takes; it stays mapped."""

    def __init__(self) -> None:
        self._chunks: dict[int, list[Words]] = {}  # by bucket

    def lease(self, bucket: int) -> Callable[..., Words]:
        """Return what gives one plan of a bucket words of a shape, all 0; other plans are given the same memory."""
        chunks = self._chunks.setdefault(bucket, [])
        used: dict[int, int] = {}

        def zeros(*shape: int) -> Words:
            count = math.prod(shape)
            taken = -(-count // ALIGNED) * ALIGNED
            at = next((at for at, chunk in enumerate(chunks) if len(chunk) - used.get(at, 0) >= taken), len(chunks))
            if at == len(chunks):
                import numpy as np  # `--help` does without

                chunks.append(np.zeros(taken, np.uint64))
            begin = used.get(at, 0)
            used[at] = begin + taken
            words = chunks[at][begin : begin + count]
            words[:] = 0
            return words.reshape(shape)

        return zeros

    def clear(self) -> None:
        """Set all words to 0, so that no plan finds what another one has left, such as the result that is due."""
        for chunks in self._chunks.values():
            for chunk in chunks:
                chunk[:] = 0

    @property
    def nbytes(self) -> int:
        """How many bytes there are."""
        return sum(chunk.nbytes for chunks in self._chunks.values() for chunk in chunks)
