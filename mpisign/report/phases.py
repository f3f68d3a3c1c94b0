"""Where the time of an iteration goes: its parts, which add up to the median of the tables."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .records import Run
from .samples import COMPUTE_SPANS, Grouped, Lines, blocks, slowest, spans_of

GRADIENT = "gradient"  # data, forward and backward: all of an iteration that comes before the exchange
RIVAL = "rival's exchange"  # which is not divided
OTHER = "other"  # of a vote's exchange, what no span names
IMBALANCE = "imbalance"  # what the slowest rank takes longer than the mean of all, for which the others wait

CODING, WIRE = "coding", "wire"  # of a vote's exchange: packing, voting and unpacking; the collectives
GROUPS = {"data": GRADIENT, "forward": GRADIENT, "backward": GRADIENT, "pack": CODING, "vote": CODING, "unpack": CODING,
          **{name: name for name in (GRADIENT, "step", RIVAL, OTHER, IMBALANCE)}}  # fmt: skip

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


def condensed(phases: Phases) -> Phases:
    """Return the parts by what they are: GROUPS, and what is in none of them is the WIRE."""
    groups: dict[str, list[str]] = {}
    for name in phases.names:
        groups.setdefault(GROUPS.get(name, WIRE), []).append(name)
    rows = [
        {"method": row["method"]} | {group: sum(row[name] for name in names) for group, names in groups.items()}
        for row in phases.rows
    ]
    return Phases(list(groups), rows, [group for group, names in groups.items() if names[0] in phases.inside])


def _iteration(run: Run, groups: Grouped) -> Phases:
    compute, exchanges = groups["compute", None][""], groups["exchange", None]
    spans = spans_of(chain.from_iterable(exchanges.values()))
    own = _parts(compute, COMPUTE_SPANS)
    own[GRADIENT] = own.pop("data") + own.pop("forward") + own.pop("backward")
    rows = []
    for method in run.head["methods"]:
        exchange = _exchange_parts(run, method, exchanges[method], spans)
        exchange[IMBALANCE] = exchange[IMBALANCE] + own[IMBALANCE]
        rows.append({"method": method} | _typical(own | exchange))
    return Phases([GRADIENT, *spans, "step", RIVAL, OTHER, IMBALANCE], rows, [])


def _exchange(run: Run, groups: Grouped) -> Phases:
    exchanges = groups["exchange", None]
    spans = spans_of(chain.from_iterable(exchanges.values()))
    rows = [{"method": method} | _typical(_exchange_parts(run, method, exchanges[method], spans))
            for method in run.head["methods"]]  # fmt: skip
    return Phases([*spans, RIVAL, OTHER, IMBALANCE], rows, [])


def _exchange_parts(run: Run, method: str, lines: Lines, spans: Iterable[str]) -> Parts:
    """Return the parts of a method's exchange; a rival's is one of them."""
    parts = _parts(lines, spans, whole="seconds")
    nothing = np.zeros(len(parts[OTHER]))
    return parts | ({RIVAL: parts[OTHER], OTHER: nothing} if run.kinds[method] == "rival" else {RIVAL: nothing})


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
