"""Where the time of an iteration goes: its parts, which add up to the median of the tables."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .records import Run
from .samples import COMPUTE_SPANS, Grouped, Lines, blocks, slowest, spans_of

OTHER = "other"  # what no span names: all of an all-reduce, and little of a vote
IMBALANCE = "imbalance"  # what the slowest rank takes longer than the mean of all, for which the others wait

Parts = dict[str, NDArray[np.float64]]  # by name: seconds, one an iteration


class Phases(NamedTuple):
    """The names of parts, and a row for each method that has its seconds under them.

    `inside` are those that lie within others: the rest of them add up.
    """

    names: list[str]
    rows: list[dict[str, Any]]
    inside: list[str]


class Breakdown(NamedTuple):
    """Of an iteration in which nothing overlaps, of the exchange alone, and of an overlapped iteration if there are."""

    iteration: Phases
    exchange: Phases
    overlapped: Phases | None


def breakdown(run: Run, groups: Grouped) -> Breakdown:
    """Return where the time of a model's iterations goes."""
    overlapped = _overlapped(run, groups) if ("overlapped", None) in groups else None
    return Breakdown(_iteration(run, groups), _exchange(run, groups), overlapped)


def _iteration(run: Run, groups: Grouped) -> Phases:
    compute, exchanges = groups["compute", None][""], groups["exchange", None]
    spans = spans_of(chain.from_iterable(exchanges.values()))
    own = _parts(compute, COMPUTE_SPANS)
    own["compute"] = own.pop("data") + own.pop("forward") + own.pop("backward")
    rows = []
    for method in run.head["methods"]:
        exchange = _parts(exchanges[method], spans, whole="seconds")
        exchange[IMBALANCE] = exchange[IMBALANCE] + own[IMBALANCE]
        rows.append({"method": method} | _typical(own | exchange))
    return Phases(["compute", *spans, "step", OTHER, IMBALANCE], rows, [])


def _exchange(run: Run, groups: Grouped) -> Phases:
    exchanges = groups["exchange", None]
    spans = spans_of(chain.from_iterable(exchanges.values()))
    rows = [{"method": method} | _typical(_parts(exchanges[method], spans, whole="seconds"))
            for method in run.head["methods"]]  # fmt: skip
    return Phases([*spans, OTHER, IMBALANCE], rows, [])


def _overlapped(run: Run, groups: Grouped) -> Phases:
    # Inside backward are the parts of the exchange, in its thread; an all-reduce has none.
    overlapped, block = groups["overlapped", None], run.head["block"]
    spans, rows = spans_of(chain.from_iterable(overlapped.values())), []
    for method in run.head["methods"]:
        lines = overlapped[method]
        parts = _parts(lines, COMPUTE_SPANS, whole="seconds")
        inside = {name: _mean(lines, lines.column(name)) for name in spans}
        every = {name: blocks(seconds, block) for name, seconds in (parts | inside).items()}
        rows.append({"method": method} | _typical(every, inside=spans))
    return Phases([*COMPUTE_SPANS, OTHER, IMBALANCE, *spans], rows, spans)


def _parts(lines: Lines, names: Iterable[str], *, whole: str | None = None) -> Parts:
    """Return the parts of each iteration: their sum is the sample, its slowest rank's seconds under `whole`.

    Without it all that there is has a name.
    """
    parts = {name: _mean(lines, lines.column(name)) for name in names}
    named = sum(parts.values(), np.zeros(1))
    wholes = [whole] if whole else list(parts)
    mean = _mean(lines, sum(lines.column(name) for name in wholes))
    if whole:
        parts[OTHER] = mean - named
    parts[IMBALANCE] = slowest(lines, wholes) - mean
    return parts


def _mean(lines: Lines, seconds: NDArray[np.float64] | int) -> NDArray[np.float64]:
    """Return the mean over ranks, of each iteration."""
    at = lines.places
    mean: NDArray[np.float64] = np.bincount(at, seconds) / np.bincount(at)
    return mean


def _typical(parts: Parts, inside: Iterable[str] = ()) -> dict[str, float]:
    """Return the mean of each part over the middle half of the iterations, scaled to add up to the median of all.

    Medians of parts would not add up, and means over all would be those of the few slowest iterations.
    """
    whole = np.sum([seconds for name, seconds in parts.items() if name not in inside], axis=0)
    middle = np.argsort(whole, kind="stable")[len(whole) // 4 : len(whole) - len(whole) // 4]
    scale = float(np.median(whole) / np.mean(whole[middle]))
    return {name: scale * float(np.mean(seconds[middle])) for name, seconds in parts.items()}
