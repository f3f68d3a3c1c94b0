"""What overlapped exchanges are checked by: pieces of what goes into each bucket, kept while backward goes on.

Nothing is looked at before the iteration is over: a piece is copied where it lies, and no host waits for a device.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..coding.sizes import BITS, words_for
from .truth import Evidence, Result, Sent, floats, look, tie_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from ..voting.bucket import Bucket
    from .method import Ready, Terms

SAMPLE = 1024  # words of a bucket, at the least, that are kept of what was put in


class _Kept:
    """What is kept of a bucket: what this rank put in at some words, on its device, and all the words that it sent."""

    def __init__(self, bucket: Bucket, words: list[slice], momentum: Tensor | None) -> None:
        self.buffer, self.sizes, self.words = bucket.buffer(), [part.numel() for part in bucket.parameters()], words
        self.gradient = _cut(self.buffer, words)
        # Where there is no momentum the gradient is copied twice: so it costs each method the same.
        self.momentum, self.whole = _cut(self.buffer if momentum is None else momentum, words), momentum
        self.sent: Sent | None = None
        self.stepped: Result | None = None  # the momentum, when the iteration is over


class Pieces:
    """The first word of each bucket, the last one, and a piece of what is between, another one in each iteration.

    The pieces of the planned number of `iterations` cover the bucket, in an order that is the same on all ranks; then
    they begin again. Kept are those of one step in `every`. `seconds` is what keeping the last ones has taken.
    """

    def __init__(self, terms: Terms, iterations: int = 1, *, every: int = 1) -> None:
        self.terms, self.iterations, self.every = terms, iterations, every
        self.seconds = 0.0
        self._step, self._divisor = 0, 1
        self._kept: dict[int, _Kept] = {}
        self._orders: dict[tuple[int, int], NDArray[np.int64]] = {}

    def begin(self, ready: Ready, step: int) -> None:
        """Forget the pieces of before, and watch what this method sends."""
        self._step, self._divisor, self._kept, self.seconds = step, ready.divisor, {}, 0.0
        ready.observe(self._note)

    def end(self, ready: Ready) -> None:
        """Watch no more."""
        ready.observe(None)

    def keep(self, ready: Ready, bucket: Bucket) -> None:
        """Keep pieces of a bucket before it is exchanged; of the ceiling's too, so that all methods pay alike."""
        began = time.perf_counter()
        words = self._words(bucket.index(), words_for(bucket.buffer().numel()))
        self._kept[bucket.index()] = _Kept(bucket, words, ready.momentum_of(bucket))
        self.seconds += time.perf_counter() - began

    def _words(self, number: int, W: int) -> list[slice]:
        """Return which words of a bucket are kept in this iteration, in order."""
        inner = max(1, W - 2)  # all but the first and the last
        size = max(SAMPLE, -(-inner // self.iterations))
        count = -(-inner // size)
        if count == 1:
            return [slice(0, W)]
        if (number, count) not in self._orders:
            self._orders[number, count] = np.random.default_rng([self.terms.seed, number]).permutation(count)
        begin = 1 + size * int(self._orders[number, count][self._step // self.every % count])
        return [slice(0, 1), slice(begin, min(begin + size, W - 1)), slice(W - 1, W)]

    def _note(self, number: int, words: Tensor, absent: NDArray[np.bool_]) -> None:
        """Note what is sent. It is not copied: an exchange leaves the words as they are until the next vote."""
        self._kept[number].sent = Sent(words, absent)

    def evidence(self) -> list[Evidence]:
        """Return what was put in, bucket by bucket, and what became of the momentum; after `results`."""
        evidence = []
        for number, kept in self._kept.items():
            put_in = floats(kept.gradient) * self._divisor, kept.sizes, tie_of(self.terms, number, step=self._step)
            if kept.whole is None:
                evidence.append(Evidence(*put_in, sent=kept.sent, words=kept.words))
            else:
                evidence.append(Evidence(*put_in, floats(kept.momentum), kept.stepped, kept.sent, kept.words))
        return evidence

    def results(self) -> list[Result]:
        """Return what came out, whole, as it is now."""
        every = self._kept.values()
        results, stepped = look([kept.buffer for kept in every], [kept.whole for kept in every])
        for kept, momentum in zip(every, stepped, strict=True):
            kept.stepped = momentum
        return results


def _cut(tensor: Tensor, words: list[slice]) -> Tensor:
    """Copy the coordinates that some words stand for, in order."""
    return torch.cat([tensor[part.start * BITS : part.stop * BITS] for part in words])
