"""What overlapped exchanges are checked by: a piece of each bucket that goes in, kept while backward goes on.

Nothing is looked at before the iteration is over: a piece is copied where it lies, and no host waits for a device.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from ..coding.sizes import BITS, words_for
from .truth import Evidence, Sent, floats

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from ..coding.bits import Floats
    from ..coding.ties import Tie
    from ..methods.method import Ready
    from ..voting.bucket import HeldBucket

SAMPLE = 1024  # words of each bucket that are checked when it is exchanged during backward


class _Piece:
    """A piece of a bucket, from word `first` on: what this rank put in, on its device."""

    def __init__(self, bucket: HeldBucket, first: int, gradient: Tensor, momentum: Tensor | None) -> None:
        self.bucket, self.first, self.gradient, self.momentum = bucket, first, gradient, momentum
        self.sent: Sent | None = None


class Pieces:
    """SAMPLE words of each bucket of an iteration, drawn anew each time, the same on all ranks.

    `seconds` is what keeping them takes.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._step = 0
        self._pieces: dict[int, _Piece] = {}
        self._keeping = self._noting = 0.0  # seconds, of the thread of backward and of that of the votes

    @property
    def seconds(self) -> float:
        """How long keeping the pieces of this iteration took."""
        return self._keeping + self._noting

    def begin(self, ready: Ready, step: int) -> None:
        """Forget the pieces of before, and watch what this method sends."""
        self._step, self._pieces, self._keeping, self._noting = step, {}, 0.0, 0.0
        ready.observe(self._note)

    def end(self, ready: Ready) -> None:
        """Watch no more."""
        ready.observe(None)

    def keep(self, ready: Ready, bucket: HeldBucket) -> None:
        """Keep a piece of a bucket before it is exchanged; of the ceiling's too, so that all methods pay alike."""
        began = time.perf_counter()
        coins = np.random.default_rng([self.seed, self._step, bucket.number])
        first = int(coins.integers(max(1, words_for(bucket.tensor.numel()) - SAMPLE + 1)))
        piece = slice(first * BITS, (first + SAMPLE) * BITS)
        momentum = ready.momentum_of(bucket)
        momentum = None if momentum is None else momentum[piece].clone()
        self._pieces[bucket.number] = _Piece(bucket, first, bucket.tensor[piece].clone(), momentum)
        self._keeping += time.perf_counter() - began

    def _note(self, number: int, words: Tensor, tie: Tie, absent: NDArray[np.bool_]) -> None:
        """Keep the same piece of the words that are sent."""
        began = time.perf_counter()
        piece = self._pieces[number]
        piece.sent = Sent(words[piece.first : piece.first + SAMPLE].clone(), tie, absent)
        self._noting += time.perf_counter() - began

    def evidence(self) -> tuple[list[Evidence], list[Floats]]:
        """Return what was put in and what came out of it, piece by piece, once the iteration is over."""
        evidence, results = [], []
        for piece in self._pieces.values():
            momentum = None if piece.momentum is None else floats(piece.momentum)
            evidence.append(Evidence(floats(piece.gradient), piece.bucket.sizes, momentum, piece.sent, piece.first))
            results.append(floats(piece.bucket.tensor[piece.first * BITS :][: len(piece.gradient)]))
        return evidence, results
