"""`mpisign.report compare`: what became faster, slower or indistinguishable from some records to others.

The unit is a start, one record: starts differ by more than the samples within one tell. A method's value of a start is
its median.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from . import columns, records, statistics, table, text
from .records import Run
from .samples import grouped, measured
from .statistics import CONFIDENCE, Median

SLOWER = 3  # the exit code where something is
STARTS = 4  # on a side, or more, are tested: 3 and 3 can be shared out in 20 ways, and no way is rarer than 5 %
AT_LEAST = 0.1  # the difference that counts between fewer
SHUFFLES = 10_000  # at most; of more ways so many are drawn

Cell = tuple[str, int | None]  # a method, and a size in a sweep


@dataclass(frozen=True)
class Start:
    """What is compared of a record: of each cell the `samples` of its exchange, or of whole iterations that overlap it.

    `wrong` are the cells that had a wrong result: all of them if the replicas differ between ranks.
    """

    samples: dict[Cell, NDArray[np.float64]]
    wrong: frozenset[Cell]
    overlaps: bool


def started(run: Run) -> Start:
    """Return what is compared of a run."""
    samples: dict[Cell, NDArray[np.float64]] = {}
    groups, overlaps, wrong = grouped(run), run.head["config"]["schedule"] == "overlap", set()
    for size in run.head["config"]["sizes"] or [None]:
        one = measured(run, size, groups=groups)
        for method in run.head["methods"]:
            if run.kinds[method] != "ceiling":
                samples[method, size] = (one.iteration if overlaps else one.comm)[method]
                wrong |= {(method, size)} if one.wrong[method] or run.replicas_differ else set()
    return Start(samples, frozenset(wrong), overlaps)


class Side:
    """The starts of a side: of each cell `samples`, one array a start, and whether a result was `wrong` in any."""

    def __init__(self, starts: Sequence[Start]) -> None:
        self.samples = {cell: [start.samples[cell] for start in starts] for cell in starts[0].samples
                        if all(cell in start.samples for start in starts)}  # fmt: skip
        self.wrong = frozenset().union(*(start.wrong for start in starts))

    def medians(self, cells: Sequence[Cell]) -> NDArray[np.float64]:
        """Return the median of each start, shape (starts, cells), seconds."""
        return np.array([[np.median(start) for start in self.samples[cell]] for cell in cells]).T


def compare(olds: Sequence[Start], news: Sequence[Start], *, at_least: float | None = None) -> table.Part:
    """Return a row for each method (and size) that all starts have: old over new, its interval and a verdict last."""
    sides = old, new = Side(olds), Side(news)
    cells = [cell for cell in new.samples if cell in old.samples]
    tested = min(len(olds), len(news)) >= STARTS
    if at_least is None:
        at_least = 0.0 if tested else AT_LEAST
    ratios = (between_starts if tested else within_starts)(*sides, cells) if cells else []
    rows = []
    for cell, ratio in zip(cells, ratios, strict=True):
        medians = (text.milliseconds(float(np.median(side.medians([cell])))) for side in sides)
        name = cell[0] if cell[1] is None else f"{cell[0]}, {cell[1]} bytes"
        judged = _judge(ratio, at_least)
        if not tested and min(map(len, old.samples[cell] + new.samples[cell])) < statistics.enough(2 * len(cells)):
            judged = "too few samples"
        if cell in old.wrong | new.wrong:
            judged = "wrong" if cell in new.wrong else "old is wrong"
        rows.append([name, *medians, text.ratio_and_interval(ratio), judged])
    what = "iteration" if news[0].overlaps else "comm"
    headers = ["method", f"old {what} ms", f"new {what} ms", f"old / new [{columns.TOGETHER}]", "new is"]
    return table.Part(_caption(len(olds), len(news), at_least=at_least, tested=tested), headers, rows)


def _judge(ratio: Median, at_least: float) -> str:
    if max(ratio.median, 1 / ratio.median) >= 1 + at_least:
        if ratio.low > 1:
            return "faster"
        if ratio.high < 1:
            return "slower"
    return "indistinguishable"  # also if the ends are no numbers, which those of constant cells may be


def _caption(olds: int, news: int, *, at_least: float, tested: bool) -> str:
    counts = f" A difference counts from {text.percent(at_least)} on." if at_least else ""
    if tested:
        return (
            f"{olds} old starts and {news} new ones, tested by permutation of the starts.{counts} They must have been "
            "interleaved (old, new, old, new): a drift between two blocks of starts is no difference of the code."
        )
    these = "These two starts" if olds == news == 1 else "These starts"
    return (
        f"{these} only: how much one start differs from the next is not known ({STARTS} or more on each side would "
        f"tell), and the intervals are of what varied within them.{counts}"
    )


def between_starts(old: Side, new: Side, cells: Sequence[Cell]) -> list[Median]:
    """Return old / new of each cell: the geometric mean of the starts, its interval by permutation of them.

    If nothing changed, any start could as well have been on the other side. So the starts are shared out anew, all
    cells of a start together, in all ways or SHUFFLES of them; each time the largest of all cells' t statistics is
    kept (Westfall & Young 1993). Intervals reach to the statistic that is exceeded in 5 % of the ways: they leave out
    1, anywhere in the table, in 5 % of the comparisons of what is alike.
    """
    logs, count = np.log(np.concatenate([old.medians(cells), new.medians(cells)])), len(old.samples[cells[0]])
    difference, error = _apart(logs, _ways(len(logs), count))
    largest = np.sort(_statistic(difference, error).max(axis=1))[::-1]
    reach = largest[math.floor((1 - CONFIDENCE) * len(largest))] * (1 + 1e-9)  # ways that mirror each other are alike
    with np.errstate(invalid="ignore"):  # infinite times 0
        ends = (difference[0], difference[0] - reach * error[0], difference[0] + reach * error[0])
    return [Median(*map(float, ratio)) for ratio in np.exp(ends).T]


@functools.cache
def _ways(starts: int, olds: int) -> NDArray[np.bool_]:
    """Return ways to say which starts are old, shape (ways, starts); the first is the true one."""
    if math.comb(starts, olds) <= SHUFFLES:
        chosen = np.array(list(combinations(range(starts), olds)))
    else:
        rng = np.random.default_rng(0)
        chosen = np.array([range(olds), *(rng.permutation(starts)[:olds] for _ in range(SHUFFLES - 1))])
    ways = np.zeros((len(chosen), starts), bool)
    np.put_along_axis(ways, chosen, values=True, axis=1)
    return ways


def _apart(logs: NDArray[np.float64], ways: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how far the means of both sides lie apart and its standard error, both of shape (ways, cells)."""
    logs = logs - logs.mean(axis=0)
    means, squares = [], []
    for side in (ways, ~ways):
        count = side.sum(axis=1, keepdims=True)
        mean = side @ logs / count
        means.append(mean)
        squares.append(np.maximum(side @ logs**2 - count * mean**2, 0))
    olds, starts = int(ways[0].sum()), ways.shape[1]
    error = np.sqrt(sum(squares) / (starts - 2) * (1 / olds + 1 / (starts - olds)))
    return means[0] - means[1], error


def _statistic(difference: NDArray[np.float64], error: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return |t|; 0 where the starts do not differ at all."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(abs(difference) / error, nan=0.0, posinf=math.inf)


def within_starts(old: Side, new: Side, cells: Sequence[Cell]) -> list[Median]:
    """Return old / new of each cell: of the medians over starts, and the farthest that these starts' intervals allow.

    They leave out 1 if all starts of one side lie apart from all of the other.
    """
    held, ratios = 2 * len(cells), []
    for cell in cells:
        before, after = ([statistics.median_interval(start, held) for start in side.samples[cell]]
                         for side in (old, new))  # fmt: skip
        ratio = np.median([start.median for start in before]) / np.median([start.median for start in after])
        ratios.append(Median(
            float(ratio),
            min(start.low for start in before) / max(start.high for start in after),
            max(start.high for start in before) / min(start.low for start in after),
        ))  # fmt: skip
    return ratios


def main(options: argparse.Namespace) -> int:
    """Print the comparison; return the exit code.

    Raises:
        ValueError: the records can't be compared.
        OSError: a record can't be read.

    """
    olds, news = ([records.read(path) for path in paths] for paths in (options.old, options.new))
    differences = records.differences(*olds, *news)
    if differences and not options.anyway:
        raise ValueError(f"the runs differ in {'; '.join(differences)} (--anyway compares them all the same)")
    before, after = ([started(run) for run in runs] for runs in (olds, news))
    part = compare(before, after, at_least=options.at_least)
    if not part.cells:
        raise ValueError("the runs have no method in common")
    print(table.grid(part.cells, part.headers, style="pipe" if options.format == "markdown" else "simple"))
    print(f"\n{part.caption}")
    if differences:
        print(f"\nWARNING: the runs differ in {'; '.join(differences)}")
    cells = [set(start.samples) for start in (*before, *after)]
    lacking = {method for method, _ in set().union(*cells).difference(cells[0].intersection(*cells))}
    if lacking:
        print(f"\nWARNING: not compared, for not all records have them: {', '.join(sorted(lacking))}")
    for path, run in zip([*options.old, *options.new], [*olds, *news], strict=True):
        if run.replicas_differ:
            print(f"\nWARNING: the replicas DIFFER between ranks in {path}, so all of it is wrong")
    wrong = any(start.wrong for start in after)
    return SLOWER if wrong or any(row[-1] == "slower" for row in part.cells) else 0
