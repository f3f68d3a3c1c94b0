"""Redraw the tables of records, or compare two runs. Needs neither MPI nor torch.

python -m mpisign.report FILE...
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from . import records, rows, statistics, table


def compare(old: records.Run, new: records.Run, style: str) -> str:
    """Return a row for each method (and size) that both runs have: old over new, its interval and a verdict."""
    cells = []
    for size in new.head["config"]["sizes"] or [None]:
        before, after = (rows.overlapped_samples(run) or rows.comm_samples(run, size) for run in (old, new))
        for method in new.head["methods"]:
            if method not in before or method == "none":
                continue
            ratio = statistics.median_ratio(before[method], after[method])
            medians = (table.milliseconds(float(np.median(run[method]))) for run in (before, after))
            name = method if size is None else f"{method}, {size} bytes"
            cells.append(
                [
                    name,
                    *medians,
                    table.ratio_text(ratio),
                    statistics.verdict(ratio, min(len(before[method]), len(after[method]))),
                ]
            )
    what = "iteration" if new.overlapped else "comm"
    headers = ["method", f"old {what} ms", f"new {what} ms", "old / new [95 % interval]", "new is"]
    return table.grid(cells, headers, style)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mpisign.report", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a record that mpisign.bench left")
    parser.add_argument("--compare", action="store_true", help="hold the second of two records against the first")
    parser.add_argument("--anyway", action="store_true", help="compare although the runs' facts differ")
    parser.add_argument("--format", choices=table.FORMATS, default="table", help="(default: %(default)s)")
    parser.add_argument("--per-iteration", action="store_true", help="print each iteration too")
    options = parser.parse_args(arguments)
    if options.compare and len(options.files) != 2:
        parser.error(f"--compare takes two records, got {len(options.files)}")
    if len(options.files) > 1 and not options.compare and options.format in ("csv", "json"):
        parser.error(f"--format {options.format} takes one record")
    if options.compare and options.format in ("csv", "json", "lines"):
        parser.error("--compare prints a table or markdown")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = _parse(arguments)
    try:
        runs = [records.read(path) for path in options.files]
    except (OSError, ValueError) as error:
        print(f"mpisign.report: error: {error}", file=sys.stderr)
        return 2
    if not options.compare:
        between = "\n" if options.format == "lines" else "\n\n"
        print(between.join(table.render(run, options.format, options.per_iteration) for run in runs))
        return 0
    found = records.differences(runs[0], runs[1])
    if found and not options.anyway:
        print(f"mpisign.report: error: the runs differ in {'; '.join(found)} (--anyway compares them all the same)",
              file=sys.stderr)  # fmt: skip
        return 2
    print(compare(runs[0], runs[1], "pipe" if options.format == "markdown" else "simple"))
    if found:
        print(f"\nWARNING: the runs differ in {'; '.join(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
