"""What the methods ought to make of one gradient: each result is held to it in the very run that is timed.

A check reads what was put in and what came out, and writes to neither, nor to a method's state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..coding.bits import Floats, Words
from ..coding.sizes import BITS, words_for
from ..coding.ties import Tie
from ..ranks import agreement, patience
from ..voting import truth
from .means import Mean
from .projections import Kept, wrong_projections

if TYPE_CHECKING:
    from torch import Tensor

    from ..ranks.launch import Comm
    from .method import Method, Terms


CHUNK = 2**20  # coordinates that are summed at a time
GLIMPSE = 4096  # coordinates, of which one is looked at first


class Sent(NamedTuple):
    """The words that a rank really sent, int64 (W,) on their device.

    `absent`, bool (parts,), tells on which parameters of the bucket the rank abstained.
    """

    words: Tensor
    absent: NDArray[np.bool_]


class Cast(NamedTuple):
    """What a rank has sent, on the host: see `Sent`."""

    words: Words
    absent: NDArray[np.bool_]


class Result:
    """What came out of an exchange of one bucket, or its momentum, whole: `array`, float32 (n,) on the host.

    Made when the clock has just stopped, it can tell whether somebody has written to the bucket since then. Making it
    takes a glimpse, at once; `read` reads all of it, which whoever still writes may be ahead of.
    """

    array: Floats

    def __init__(self, buffer: Tensor) -> None:
        self._buffer = buffer
        self._glimpse, self._sum = self._glimpsed(), 0

    def read(self) -> None:
        """Read it whole."""
        self._sum = self._summed()
        self.array = floats(self._buffer)

    def _glimpsed(self) -> Tensor:
        return torch.cat([self._buffer[::GLIMPSE], self._buffer[-1:]]).view(torch.int32)

    def _summed(self) -> int:
        # Where the bucket lies; in chunks, for torch makes a wider copy first of what it sums wider.
        chunks = torch.split(self._buffer.view(torch.int32), CHUNK)
        return sum(int(chunk.sum(dtype=torch.int64).item()) for chunk in chunks)

    @property
    def changed(self) -> bool:
        """Whether it is another one now."""
        return not torch.equal(self._glimpsed(), self._glimpse) or self._summed() != self._sum


def look(buffers: Sequence[Tensor], momenta: Sequence[Tensor | None]) -> tuple[list[Result], list[Result | None]]:
    """Look at what came out of an exchange, bucket by bucket, and at its momentum: glimpse at all, then read all.

    The last come first: they may be written yet.
    """
    results = [Result(buffer) for buffer in reversed(buffers)][::-1]
    stepped = [None if momentum is None else Result(momentum) for momentum in reversed(momenta)][::-1]
    for one in (*reversed(results), *reversed(stepped)):
        if one is not None:
            one.read()
    return results, stepped


class Evidence(NamedTuple):
    """What a rank put into an exchange of one bucket: all of it, or what some `words` of it stand for, in order."""

    gradient: Floats  # a dense traitor's own
    sizes: list[int]  # of the parameters of the whole bucket
    tie: Tie  # how its vote ought to be taken
    momentum: Floats | None = None  # before the step
    stepped: Result | None = None  # the momentum after it, of the whole bucket
    sent: Sent | None = None  # of a vote, whole
    words: list[slice] | None = None
    kept: Kept | None = None  # of PowerSGD


def floats(tensor: Tensor) -> Floats:
    """Return the floats of a tensor on the host; the same memory if it lies there already."""
    array: Floats = tensor.detach().cpu().numpy()
    return array


def tie_of(terms: Terms, number: int, *, step: int) -> Tie:
    """Return how the vote on a bucket of a step ought to break ties: each bucket of each step has its own coins."""
    return Tie(terms.tie, terms.seed, (step << 16) + number)


class Truth:
    """What methods ought to make of the same gradient, computed when first asked for. Collective.

    All that are checked by one Truth have put in the same gradient and momentum, bucket by bucket.
    """

    def __init__(self, comm: Comm, terms: Terms) -> None:
        self.comm, self.terms = comm, terms
        self._signs: list[Words] = []  # of what this rank put in
        self._casts: list[Cast] = []  # what `_votes` are on
        self._votes: list[Words] = []
        self._means: list[Mean] = []

    def wrong(self, method: Method, evidence: Sequence[Evidence], results: Sequence[Result]) -> int:
        """Count the wrong coordinates of a method's results on all ranks; at least one where ranks have other bits."""
        if method.truth.of == "nothing":
            return 0
        arrays = [result.array for result in results]
        wrong = agreement.differs(self.comm, arrays)
        if method.truth.of == "mean":
            wrong += self._mean(method, evidence, arrays)
        elif method.truth.of == "projection":
            wrong += sum(
                wrong_projections(self.comm, part.gradient, part.kept, result=array, rank=method.truth.rank)
                for part, array in zip(evidence, arrays, strict=True)
                if part.kept is not None
            )
        elif method.truth.of == "vote":
            wrong += self._vote(evidence, arrays)
        written = [*results, *(part.stepped for part in evidence if part.stepped is not None)]
        wrong += sum(len(result.array) for result in written if result.changed)
        patience.quiet_barrier(self.comm)
        return int(self.comm.allreduce(wrong))

    def _mean(self, method: Method, evidence: Sequence[Evidence], results: Sequence[Floats]) -> int:
        self._means = self._means or [Mean(self.comm, part.gradient) for part in evidence]
        return sum(
            mean.wrong(_cut(result, part.words), method.truth)
            for mean, part, result in zip(self._means, evidence, results, strict=True)
        )

    def _vote(self, evidence: Sequence[Evidence], results: Sequence[Floats]) -> int:
        """Vote on what was sent, by counting; and see that an honest rank sent the signs of what it put in."""
        self._signs = self._signs or [
            truth.plain_words(part.gradient, part.momentum, beta=self.terms.momentum) for part in evidence
        ]
        cast = list(map(_cast, evidence))
        honest = self.terms.adversary is None
        wrong = 0
        if honest:
            wrong += sum(map(_unduly, evidence, self._signs, cast))
            wrong += sum(self._wrong_momentum(part, mine) for part, mine in zip(evidence, cast, strict=True))
        for part, result in zip(evidence, results, strict=True):
            # No word of it was sent, or the run asks for a momentum that is not there.
            if part.sent is None or (self.terms.momentum and part.stepped is None):
                wrong += len(result)
        self._count(evidence, cast)
        return wrong + sum(map(truth.wrong_signs, results, self._votes))

    def _wrong_momentum(self, part: Evidence, cast: Cast) -> int:
        """Count the coordinates in which the momentum is not what its step ought to have made of it."""
        if part.momentum is None or part.stepped is None:
            return 0
        wrong = begin = 0
        for words in part.words or [slice(0, len(cast.words))]:
            end = min(begin + (words.stop - words.start) * BITS, len(part.gradient))
            gradient, before = part.gradient[begin:end], part.momentum[begin:end]
            after = part.stepped.array[words.start * BITS :][: len(gradient)]
            wrong += truth.wrong_momentum(gradient, before, after, beta=self.terms.momentum, absent=cast.absent,
                                          sizes=part.sizes, first=words.start)  # fmt: skip
            begin = end
        return wrong

    def _count(self, evidence: Sequence[Evidence], cast: list[Cast]) -> None:
        """Make `_votes` those on these words; not anew, if on all ranks they are the words of before."""
        anew = not self._votes or not all(map(_same, cast, self._casts))
        patience.quiet_barrier(self.comm)
        if self.comm.allreduce(anew):
            self._casts = [Cast(mine.words.copy(), mine.absent.copy()) for mine in cast]
            self._votes = [
                truth.plain_vote(self.comm, mine.words, tie=part.tie, absent=mine.absent, sizes=part.sizes)
                for mine, part in zip(cast, evidence, strict=True)
            ]


def _cut(result: Floats, words: list[slice] | None) -> Floats:
    """Return the coordinates that some words stand for, in order; no copy if these are all."""
    if words is None or len(words) == 1:
        return result
    return np.concatenate([result[part.start * BITS : part.stop * BITS] for part in words])


def _cast(part: Evidence) -> Cast:
    """Return what was sent of a bucket, on the host; where nothing was, there are no votes."""
    if part.sent is None:
        return Cast(np.zeros(words_for(sum(part.sizes)), np.uint64), np.zeros(len(part.sizes), np.bool_))
    return Cast(part.sent.words.cpu().numpy().view(np.uint64), part.sent.absent)


def _same(cast: Cast, other: Cast) -> bool:
    return np.array_equal(cast.words, other.words) and np.array_equal(cast.absent, other.absent)


def _unduly(part: Evidence, signs: Words, cast: Cast) -> int:
    """Count the coordinates in which an honest rank has not sent the signs of what it put in, or unduly abstained."""
    if part.sent is None:
        return 0
    present = None
    if cast.absent.any():
        present = ~truth.mask(cast.absent, part.sizes)
    wrong = begin = 0
    for words in part.words or [slice(0, len(cast.words))]:
        mine = signs[begin : begin + words.stop - words.start]
        gradient = part.gradient[begin * BITS : (begin + len(mine)) * BITS]
        begin += len(mine)
        wrong += truth.wrong_absence(gradient, cast.absent, part.sizes, first=words.start)
        due = mine if present is None else mine & present[words]
        wrong += 0 if np.array_equal(cast.words[words], due) else differing_bits(cast.words[words], due)
    return wrong


def differing_bits(words: Words, others: Words) -> int:
    """Count the coordinates in which two vectors of signs differ."""
    return int(np.unpackbits((words ^ others).view(np.uint8)).sum())
