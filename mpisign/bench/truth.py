"""What the methods ought to make of one gradient: each result is held to it in the very run that is timed.

A check reads what was put in and what came out, and writes to neither, nor to a method's state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..coding.bits import Floats, Words
from ..coding.ties import Tie
from ..methods.means import Mean
from ..ranks import agreement, patience
from ..voting import truth

if TYPE_CHECKING:
    from torch import Tensor

    from ..methods.method import Method, Terms
    from ..ranks.launch import Comm


class Sent(NamedTuple):
    """The words that a rank really sent, int64 (W,) on their device, and how they were voted on.

    `absent`, bool (parts,), tells on which parameters of the bucket the rank abstained.
    """

    words: Tensor
    tie: Tie
    absent: NDArray[np.bool_]


class Cast(NamedTuple):
    """What a rank has sent, on the host: see `Sent`."""

    words: Words
    tie: Tie
    absent: NDArray[np.bool_]


class Evidence(NamedTuple):
    """What a rank put into an exchange of one bucket, or of a piece of it from word `first` on."""

    gradient: Floats  # a dense traitor's own
    sizes: list[int]  # of the parameters of the whole bucket
    momentum: Floats | None = None  # before the step
    sent: Sent | None = None  # of a vote
    first: int = 0


def floats(tensor: Tensor) -> Floats:
    """Return the floats of a tensor on the host; the same memory if it lies there already."""
    array: Floats = tensor.detach().cpu().numpy()
    return array


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

    def wrong(self, method: Method, evidence: Sequence[Evidence], results: Sequence[Floats]) -> int:
        """Count the wrong coordinates of a method's results on all ranks."""
        count = {"nothing": self._nothing, "same": self._same, "mean": self._mean, "vote": self._vote}[method.truth.of]
        wrong = count(method, evidence, results)
        patience.quiet_barrier(self.comm)
        return int(self.comm.allreduce(wrong))

    def _nothing(self, method: Method, evidence: Sequence[Evidence], results: Sequence[Floats]) -> int:
        return 0

    def _same(self, method: Method, evidence: Sequence[Evidence], results: Sequence[Floats]) -> int:
        return sum(agreement.differs(self.comm, result) for result in results)

    def _mean(self, method: Method, evidence: Sequence[Evidence], results: Sequence[Floats]) -> int:
        self._means = self._means or [Mean(self.comm, part.gradient) for part in evidence]
        return sum(mean.wrong(result, method.truth) for mean, result in zip(self._means, results, strict=True))

    def _vote(self, method: Method, evidence: Sequence[Evidence], results: Sequence[Floats]) -> int:
        """Vote on what was sent, by counting; and see that an honest rank sent the signs of what it put in."""
        self._signs = self._signs or [
            truth.plain_words(part.gradient, part.momentum, beta=self.terms.momentum) for part in evidence
        ]
        cast = list(map(self._cast, evidence, self._signs))
        honest = self.terms.adversary is None
        wrong = sum(map(_unduly, evidence, self._signs, cast)) if honest else 0
        wrong += sum(len(part.gradient) for part in evidence if part.sent is None)  # no word of it was sent
        self._count(evidence, cast)
        return wrong + sum(map(truth.wrong_signs, results, self._votes))

    def _cast(self, part: Evidence, signs: Words) -> Cast:
        """Return what was sent of a bucket, on the host; what had to be, where nothing was."""
        if part.sent is None:
            return Cast(signs, Tie(self.terms.tie, self.terms.seed), np.zeros(len(part.sizes), np.bool_))
        return Cast(part.sent.words.cpu().numpy().view(np.uint64), part.sent.tie, part.sent.absent)

    def _count(self, evidence: Sequence[Evidence], cast: list[Cast]) -> None:
        """Make `_votes` those on these words; not anew, if on all ranks they are the words of before."""
        anew = not self._votes or not all(map(_same, cast, self._casts))
        patience.quiet_barrier(self.comm)
        if self.comm.allreduce(anew):
            self._casts = [mine._replace(words=mine.words.copy(), absent=mine.absent.copy()) for mine in cast]
            self._votes = [
                truth.plain_vote(self.comm, mine.words, tie=mine.tie, absent=mine.absent, sizes=part.sizes,
                                 first=part.first)
                for mine, part in zip(cast, evidence, strict=True)
            ]  # fmt: skip


def _same(cast: Cast, other: Cast) -> bool:
    return np.array_equal(cast.words, other.words) and np.array_equal(cast.absent, other.absent)


def _unduly(part: Evidence, signs: Words, cast: Cast) -> int:
    """Count the coordinates in which an honest rank has not sent the signs of what it put in, or unduly abstained."""
    if part.sent is None:
        return 0
    wrong = truth.wrong_absence(part.gradient, cast.absent, part.sizes, first=part.first)
    if cast.absent.any():
        signs = signs & ~truth.mask(cast.absent, part.sizes, first=part.first, n=len(part.gradient))
    return wrong + (0 if np.array_equal(cast.words, signs) else differing_bits(cast.words, signs))


def differing_bits(words: Words, others: Words) -> int:
    """Count the coordinates in which two vectors of signs differ."""
    return int(np.unpackbits((words ^ others).view(np.uint8)).sum())
