"""Where the time of an iteration goes: the phases of each method, mean over ranks, median over iterations."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .records import Run
from .samples import COMPUTE_SPANS, Grouped, Lines, column, in_order, places, spans_of


class Phases(NamedTuple):
    """The names of phases, and a row for each method that has its seconds under them."""

    names: list[str]
    rows: list[dict[str, Any]]


def breakdown(run: Run, groups: Grouped) -> Phases:
    """Return the phases of an iteration in which nothing overlaps.

    "other" is what no span names: all of an all-reduce, and little of a vote.
    """
    compute, exchanges = groups["compute", None][""], groups["exchange", None]
    present = {method: spans_of(lines) for method, lines in exchanges.items()}
    names = in_order(chain.from_iterable(present.values()))
    own = np.sum([column(compute, name) for name in COMPUTE_SPANS if name != "step"], axis=0)
    shared = {"compute": _typical(places(compute), own), **_means(compute, ["step"])}
    nothing = dict.fromkeys(names, 0.0)
    rows = [
        {"method": method, **shared, **nothing, **_means(exchanges[method], present[method], rest="other")}
        for method in run.head["methods"]
    ]
    return Phases(["compute", *names, "step", "other"], rows)


def overlapped_breakdown(run: Run, groups: Grouped) -> Phases:
    """Return the phases of an overlapped iteration.

    Those from "pack" on are the exchange's, in its thread, during backward; an all-reduce has none.
    """
    overlapped = groups["overlapped", None]
    names = [*COMPUTE_SPANS, *spans_of(chain.from_iterable(overlapped.values()))]
    return Phases(names, [{"method": method, **_means(overlapped[method], names)} for method in run.head["methods"]])


def _means(lines: Lines, names: Iterable[str], *, rest: str | None = None) -> dict[str, float]:
    """Return the typical seconds under each name, and as `rest` what of an exchange's seconds is under none."""
    at, columns = places(lines), {name: column(lines, name) for name in names}
    if rest:
        columns[rest] = column(lines, "seconds") - sum(columns[name] for name in columns if name != "wait")
    return {name: _typical(at, values) for name, values in columns.items()}


def _typical(at: NDArray[np.intp], seconds: NDArray[np.float64]) -> float:
    """Return the median over iterations of the mean over ranks."""
    return float(np.median(np.bincount(at, seconds) / np.bincount(at)))
