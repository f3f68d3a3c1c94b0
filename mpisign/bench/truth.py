"""What the methods ought to make of one gradient: each result is held to it in the very run that is timed.

A check reads what was put in and what came out, and writes to neither, nor to a method's state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

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
    """The words that a rank really sent, int64 (W,) on their device, and the tie rule of the vote on them."""

    words: Tensor
    tie: Tie


class Evidence(NamedTuple):
    """What a rank put into an exchange of one bucket, or of a piece of it from word `first` on."""

    gradient: Floats  # a dense traitor's own
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
        self._honest: list[Words] = []  # what a rank sends that does not lie
        self._sent: list[Words] = []  # what `_votes` are on
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
        self._honest = self._honest or [
            truth.plain_words(part.gradient, part.momentum, beta=self.terms.momentum) for part in evidence
        ]
        wrong, sent = 0, []
        for part, honest in zip(evidence, self._honest, strict=True):
            words = honest if part.sent is None else part.sent.words.cpu().numpy().view(np.uint64)
            if part.sent is None:
                wrong += len(part.gradient)  # the method has not sent any word of it
            elif self.terms.adversary is None and not np.array_equal(words, honest):
                wrong += differing_bits(words, honest)
            sent.append(words)
        self._count(evidence, sent)
        return wrong + sum(map(truth.wrong_signs, results, self._votes))

    def _count(self, evidence: Sequence[Evidence], sent: list[Words]) -> None:
        """Make `_votes` those on these words; not anew, if on all ranks they are the words of before."""
        anew = not self._votes or not all(map(np.array_equal, sent, self._sent))
        patience.quiet_barrier(self.comm)
        if self.comm.allreduce(anew):
            ties = [part.sent.tie if part.sent else Tie(self.terms.tie, self.terms.seed) for part in evidence]
            self._sent = [words.copy() for words in sent]
            self._votes = [
                truth.plain_vote(self.comm, words, tie=tie, first=part.first)
                for words, tie, part in zip(sent, ties, evidence, strict=True)
            ]


def differing_bits(words: Words, others: Words) -> int:
    """Count the coordinates in which two vectors of signs differ."""
    return int(np.unpackbits((words ^ others).view(np.uint8)).sum())
