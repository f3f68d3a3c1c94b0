"""What happens in the votes of a state: counted as they go, told step by step, and who stands apart."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..coding import coding
from ..ranks.clock import Spans

UNKNOWN = 0  # a share that is not known, as a rank tells it
_STEPS = 2**30  # of a share that is


@dataclass(frozen=True)
class Statistics:
    """What happened in a step. Shares are between 0 and 1, and None where they are not known."""

    step: int  # the first is 0
    seconds: dict[str, float]  # pack, exchange, vote, unpack; exposed: what the end of backward waited for them
    agreement: float | None  # the share of coordinates where this rank's words agreed with the vote
    agreements: list[float | None]  # that of each rank, in the step before
    tied: float | None  # the share of coordinates without a majority; under the tie rule "zero" alone
    sent: int  # bytes, as `carriers.Booked` counts them
    received: int
    absent: int  # parameters on which this rank did not vote, for it had no gradient
    nonfinite: int  # coordinates of this rank's gradient that were not finite and counted as 0
    apart: list[int]  # the ranks that, over many steps, agree far less than the others


def told(share: float | None) -> int:
    """Return a share as the number that a rank puts in its roll."""
    return UNKNOWN if share is None else 1 + round(share * _STEPS)


def heard(number: int) -> float | None:
    """Return the share that such a number stands for."""
    return None if number == UNKNOWN else (int(number) - 1) / _STEPS


@dataclass
class _Counts:
    """What is added up during a step."""

    coordinates: int = 0  # of the buckets that this rank voted on in full
    all_coordinates: int = 0
    differing: Tensor | None = None  # int64 (1,) on the device of the words
    tied: Tensor | None = None
    sent: int = 0
    received: int = 0
    absent: int = 0
    nonfinite: int = 0


def chance(P: int) -> float:
    """Return the share in which each of P ranks agrees with the majority if all throw coins: its own vote counts."""
    even = P - P % 2
    return 0.5 + math.comb(even, even // 2) / (1 << even + 1)


class Watch:
    """Which ranks agree with the vote far less than the others: a traitor, a broken device, a wrong learning rate.

    A rank stands apart if over the last WINDOW steps its share of agreement lies below the median of the others by more
    than half of what that median is above `chance`, by more than LEAST, and by more than CERTAIN standard errors, both
    of the mean over the steps and of a share of that many coordinates. A momentum makes each step like the one before,
    so the first error is that of an autoregressive series; and it may keep the same coordinates apart all along, so no
    number of steps makes the second smaller. Two ranks say nothing of each other, and where the ranks hardly agree, or
    have few coordinates, nobody stands apart.
    """

    WINDOW, FEWEST, EVERY = 100, 30, 10  # steps: that are kept, before the first look, and from look to look
    CERTAIN, LEAST, ALIKE = 7.0, 0.05, 0.8  # the last: no step is taken to be more like the one before, but a trend

    def __init__(self, P: int) -> None:
        self.P, self.steps, self.apart = P, 0, list[int]()  # the ranks that stand apart
        self._chance = chance(P)
        self._others = np.zeros((self.WINDOW, P))  # the median of the others, step by step in a ring
        self._gaps = np.zeros((self.WINDOW, P))  # and what a rank is below it

    def see(self, shares: Sequence[float | None], coordinates: int) -> None:
        """Take in the shares, of so many coordinates, of a step; one in which a rank's is not known is left out."""
        if self.P < 3 or any(share is None for share in shares):
            return
        known, row = np.array(shares, np.float64), self.steps % self.WINDOW
        self._others[row] = _median_of_others(known)
        self._gaps[row] = self._others[row] - known
        self.steps += 1
        if self.steps >= self.FEWEST and self.steps % self.EVERY == 0:
            self.apart = self._look(coordinates)

    def _look(self, coordinates: int) -> list[int]:
        steps = min(self.steps, self.WINDOW)
        gaps = np.roll(self._gaps[:steps], -(self.steps % steps), axis=0)
        gap = gaps.mean(axis=0)
        change = gaps - gap
        squares = np.sum(change**2, axis=0)
        alike = np.sum(change[1:] * change[:-1], axis=0) / np.maximum(squares, 1e-300)
        alike = np.clip(alike + (1 + 3 * alike) / steps, 0, self.ALIKE)  # so few steps make it too small by that
        error = np.sqrt(squares / steps**2 * (1 + alike) / (1 - alike))
        above = self._others[:steps].mean(axis=0) - self._chance
        error = np.maximum(error, math.sqrt(0.25 / coordinates))
        far = np.maximum(np.maximum(above / 2, self.LEAST), self.CERTAIN * error)
        return [int(rank) for rank in np.flatnonzero(gap > far)]


def _median_of_others(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return for each of P ranks, two or more, the median without its own."""
    P, order = len(shares), np.argsort(shares)
    place, ordered = np.argsort(order), shares[order]
    middle: NDArray[np.float64] = sum(ordered[k + (place <= k)] for k in ((P - 2) // 2, (P - 1) // 2)) / 2
    return middle


@dataclass
class Ledger:
    """The accounts of a state of P ranks; its spans go on to the caller's."""

    P: int
    rank: int
    into: Spans | None = None
    news: list[str] = field(default_factory=list)  # lines that have not been told yet
    _once: set[Any] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.spans, self.watch, self._step = Spans(into=self.into), Watch(self.P), _Counts()
        self._agreements: list[float | None] = [None] * self.P
        self._coordinates = 0  # of the last step
        self._last: Callable[[], Statistics | None] = lambda: None

    def last(self) -> Statistics | None:
        """Return what happened in the last whole step; None before there is one. A device is waited for."""
        return self._last()

    def hear(self, agreed: NDArray[np.int64]) -> None:
        """Take in what all ranks tell of their agreement in the step before."""
        self._agreements = [heard(number) for number in agreed]
        self.watch.see(self._agreements, self._coordinates)
        for rank in self.watch.apart:
            shares = ", ".join("?" if share is None else f"{share:.3f}" for share in self._agreements)
            self._tell(
                ("apart", rank),
                f"rank {rank} agrees with the votes far less than the others do: a traitor, a broken device, other "
                f"data or another model? Shares by rank: {shares}",
            )

    def count(
        self, words: Tensor, voted: Tensor, *, n: int, absent: NDArray[np.bool_], tie: str, moved: tuple[int, int]
    ) -> None:
        """Add a bucket of n coordinates: this rank's words, int64 (W,), and the vote, (W,) or (2, W)."""
        step, rows = self._step, voted if voted.ndim == 2 else voted[None]
        step.all_coordinates += n
        step.sent += moved[0]
        step.received += moved[1]
        step.absent += int(np.count_nonzero(absent))
        if not absent.any():
            step.coordinates += n
            step.differing = _more(step.differing, words)
            coding.count_differing(words, rows[0], step.differing)
        if tie == "zero":
            step.tied = _more(step.tied, words)
            coding.count_ones(rows[1], step.tied)

    def nonfinite(self, faults: NDArray[np.int64], index: int) -> str | None:
        """Add a bucket's coordinates that were not finite, of each rank; return a line if there were any."""
        self._step.nonfinite += int(faults[self.rank])
        guilty = np.flatnonzero(faults)
        if not len(guilty):
            return None
        ranks = f"rank{'s' * (len(guilty) > 1)} {', '.join(map(str, guilty))}"
        line = f"bucket {index}: {faults.sum()} values of the gradient are not finite, on {ranks}; they count as 0"
        self._tell("nonfinite", line + ' (told once; statistics() counts them, nonfinite="raise" would stop)')
        return line

    def end_step(self, number: int, exposed: float) -> None:
        """Close the accounts of a step. What a device still counts is looked up when it is asked for."""
        step, spans, agreements, apart = self._step, self.spans, self._agreements, self.watch.apart
        self._coordinates, self._step, self.spans = step.all_coordinates, _Counts(), Spans(into=self.into)

        @functools.cache
        def last() -> Statistics:
            rest = spans.take()
            seconds = {name: rest.pop(name, 0.0) for name in ("pack", "vote", "unpack")}
            return Statistics(
                number, seconds | {"exchange": math.fsum(rest.values()), "exposed": exposed},
                _share(step.coordinates, step.differing, rest=True), agreements,
                _share(step.all_coordinates, step.tied), step.sent, step.received, step.absent, step.nonfinite, apart,
            )  # fmt: skip

        self._last = last

    def _tell(self, once: Any, line: str) -> None:
        if once not in self._once:
            self._once.add(once)
            self.news.append(line)


def _more(counter: Tensor | None, words: Tensor) -> Tensor:
    return torch.zeros(1, dtype=torch.int64, device=words.device) if counter is None else counter


def _share(whole: int, counter: Tensor | None, *, rest: bool = False) -> float | None:
    if counter is None or not whole:
        return None
    share = int(counter) / whole
    return 1 - share if rest else share
