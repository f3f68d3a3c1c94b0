"""`mpisign.report compare`: what became faster, slower or indistinguishable from one record to another."""

from __future__ import annotations

import argparse

import numpy as np

from . import records, statistics, table, text
from .records import Run
from .samples import Grouped, Samples, grouped, measured

SLOWER = 3  # the exit code where something is


def compare(old: Run, new: Run) -> table.Part:
    """Return a row for each method (and size) that both runs have: old over new, its interval and a verdict last."""
    cells = []
    groups = [(run, grouped(run)) for run in (old, new)]
    for size in new.head["config"]["sizes"] or [None]:
        before, after = (_compared(run, size, groups=lines) for run, lines in groups)
        for method in new.head["methods"]:
            if method not in before or new.kinds[method] == "ceiling":
                continue
            ratio = statistics.median_ratio(before[method], after[method])
            medians = (text.milliseconds(float(np.median(samples[method]))) for samples in (before, after))
            verdict = statistics.verdict(ratio, min(len(before[method]), len(after[method])))
            name = method if size is None else f"{method}, {size} bytes"
            cells.append([name, *medians, text.ratio_and_interval(ratio), verdict])
    what = "iteration" if new.head["config"]["schedule"] == "overlap" else "comm"
    headers = ["method", f"old {what} ms", f"new {what} ms", "old / new [95 % interval]", "new is"]
    return table.Part("The new run held against the old:", headers, cells)


def _compared(run: Run, size: int | None, *, groups: Grouped) -> Samples:
    """Return the samples that are compared: of the exchange, or of whole iterations that overlap it."""
    samples = measured(run, size, groups=groups)
    return samples.iteration if run.head["config"]["schedule"] == "overlap" else samples.comm


def main(options: argparse.Namespace) -> int:
    """Print the comparison; return the exit code.

    Raises:
        ValueError: the records can't be compared.
        OSError: a record can't be read.

    """
    old, new = records.read(options.old), records.read(options.new)
    differences = records.differences(old, new)
    if differences and not options.anyway:
        raise ValueError(f"the runs differ in {'; '.join(differences)} (--anyway compares them all the same)")
    part = compare(old, new)
    if not part.cells:
        raise ValueError("the runs have no method in common")
    print(table.grid(part.cells, part.headers, style="pipe" if options.format == "markdown" else "simple"))
    if differences:
        print(f"\nWARNING: the runs differ in {'; '.join(differences)}")
    return SLOWER if any(cells[-1] == "slower" for cells in part.cells) else 0
