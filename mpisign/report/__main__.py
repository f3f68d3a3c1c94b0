"""Redraw the tables of records, draw their charts, make a page of them, or compare two. Needs neither MPI nor torch.

python -m mpisign.report FILE... [--figures FOLDER] [--html FILE]
python -m mpisign.report compare OLD NEW
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from . import records, rows, statistics, table, trace

PROGRAM = "mpisign.report"
SLOWER = 3  # the exit code of `compare` where something is


def compare(old: records.Run, new: records.Run) -> table.Part:
    """Return a row for each method (and size) that both runs have: old over new, its interval and a verdict last."""
    cells = []
    for size in new.head["config"]["sizes"] or [None]:
        before, after = (rows.overlapped_samples(run) or rows.comm_samples(run, size) for run in (old, new))
        for method in new.head["methods"]:
            if method not in before or new.kinds[method] == "ceiling":
                continue
            ratio = statistics.median_ratio(before[method], after[method])
            medians = (table.milliseconds(float(np.median(run[method]))) for run in (before, after))
            verdict = statistics.verdict(ratio, min(len(before[method]), len(after[method])))
            name = method if size is None else f"{method}, {size} bytes"
            cells.append([name, *medians, table.ratio_text(ratio), verdict])
    what = "iteration" if new.head["config"]["schedule"] == "overlap" else "comm"
    headers = ["method", f"old {what} ms", f"new {what} ms", "old / new [95 % interval]", "new is"]
    return table.Part("The new run held against the old:", headers, cells)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description=__doc__.splitlines()[0],
        epilog=f"{PROGRAM} compare OLD NEW holds one record against another (compare --help tells more). "
        "A record that is itself called compare is ./compare.",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a record that mpisign.bench left")
    parser.add_argument("--baseline", metavar="METHOD", help="hold all against this method of the record")
    parser.add_argument("--format", choices=table.FORMATS, default="table", help="(default: %(default)s)")
    parser.add_argument("--per-iteration", action="store_true", help="print each iteration too")
    parser.add_argument(
        "--figures", type=Path, metavar="FOLDER", help="write the charts as RECORD-CHART.svg and .png; of several "
        "records, alike in all but the number of ranks, scaling.svg too",
    )  # fmt: skip
    parser.add_argument("--html", type=Path, metavar="FILE", help="write tables, charts and facts as one page")
    parser.add_argument("--trace", type=Path, metavar="OUT", help="write the time line of one record for Perfetto")
    _add_projection(parser)
    options = parser.parse_args(arguments)
    if options.trace and len(options.files) != 1:
        parser.error(f"--trace takes one record, got {len(options.files)}")
    if len(options.files) > 1 and options.format in ("csv", "json"):
        parser.error(f"--format {options.format} takes one record")
    return options


def _add_projection(parser: argparse.ArgumentParser) -> None:
    """Add what `--project` takes."""
    group = parser.add_argument_group("projection to another network, from sweeps (mpisign.bench --sizes)")
    add = group.add_argument
    add(
        "--project",
        type=Path,
        metavar="OUT",
        help="fit FILEs, draw OUT.svg and OUT.png; one FILE may be a run of a model, for its compute and size",
    )
    add("--bandwidth", type=_positive, default=10.0, metavar="GBITS", help="Gbit/s, over P (default: %(default)s)")
    add("--ranks", type=int, default=16, metavar="P", help="hosts, over bandwidth (default: %(default)s)")
    add("--latency-us", type=_positive, metavar="US", help="of a message (default: as fitted)")
    add("--compute-ms", type=_positive, metavar="MS", help="of an iteration (default: of the model's run)")
    add("--coordinates", type=int, metavar="D", help="of the gradient (default: the run's, or ResNet-50's)")
    add("--project-methods", metavar="NAMES", help="with commas between (default: all that were swept)")


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no finite number above 0")
    return value


def _parse_compare(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} compare",
        description="Say what became faster, slower or indistinguishable from one record to another.",
        epilog=f"Exit code: 0 if nothing is slower, {SLOWER} if something is, 2 if the records can't be compared.",
    )
    parser.add_argument("old", type=Path, metavar="OLD", help="a record that mpisign.bench left")
    parser.add_argument("new", type=Path, metavar="NEW", help="another")
    parser.add_argument("--anyway", action="store_true", help="compare although the runs' facts differ")
    parser.add_argument("--format", choices=("table", "markdown"), default="table", help="(default: %(default)s)")
    return parser.parse_args(arguments)


def _compared(options: argparse.Namespace) -> int:
    """Print the comparison; return the exit code.

    Raises:
        ValueError: the records can't be compared.

    """
    old, new = records.read(options.old), records.read(options.new)
    found = records.differences(old, new)
    if found and not options.anyway:
        raise ValueError(f"the runs differ in {'; '.join(found)} (--anyway compares them all the same)")
    part = compare(old, new)
    if not part.cells:
        raise ValueError("the runs have no method in common")
    print(table.grid(part.cells, part.headers, "pipe" if options.format == "markdown" else "simple"))
    if found:
        print(f"\nWARNING: the runs differ in {'; '.join(found)}")
    return SLOWER if any(cells[-1] == "slower" for cells in part.cells) else 0


def _reported(options: argparse.Namespace) -> int:
    """Print the tables, and write charts and page if asked to; return the exit code.

    Raises:
        ValueError: an argument or a record won't do.
        OSError: a file can't be read or written.

    """
    runs = [records.read(path) for path in options.files]
    for path, run in zip(options.files, runs, strict=True):
        if options.baseline:
            _hold_against(path, run, options.baseline)
    if options.figures or options.html:
        _refuse_charts(options, runs)
    between = "\n" if options.format == "lines" else "\n\n"
    print(between.join(table.render(run, options.format, options.per_iteration) for run in runs), flush=True)
    if options.figures or options.html:
        _draw(options, runs)
    return 0


def _hold_against(path: Path, run: records.Run, baseline: str) -> None:
    able = [method for method in run.head["methods"] if run.kinds[method] != "ceiling"]
    if baseline not in able:
        raise ValueError(f"--baseline: {path} has no {baseline}, only {', '.join(able)}")
    run.head["baseline"] = baseline


def _refuse_charts(options: argparse.Namespace, runs: Sequence[records.Run]) -> None:
    """Raise a ValueError if the charts can't be drawn or written: before anything is."""
    from . import charts

    stems = [path.stem for path in options.files]
    for stem in stems:
        if stems.count(stem) > 1:
            raise ValueError(f"two of the records are called {stem}: their charts would be, too")
    if reason := charts.missing():
        raise ValueError(reason)
    if reason := charts.misfit(runs):
        raise ValueError(f"these records cannot be drawn together: {reason}")
    if options.html in options.files:
        raise ValueError(f"--html: {options.html} is one of the records")
    for option, path in (("--figures", options.figures and options.figures / "x"), ("--html", options.html)):
        fault = path and records.unwritable(path)
        if fault:
            raise ValueError(f"{option}: {fault}")


def _draw(options: argparse.Namespace, runs: Sequence[records.Run]) -> None:
    from . import charts, page

    suffixes = (".svg", ".png") if options.figures else (".svg",)
    named = dict(zip((path.stem for path in options.files), runs, strict=True))
    drawn = {
        name: {chart: charts.pictures(draw, suffixes) for chart, draw in charts.drawings(run).items()}
        for name, run in named.items()
    }
    together = charts.pictures(lambda: charts.scaling(runs), suffixes) if len(runs) > 1 else {}
    if options.figures:
        pictures = {f"{name}-{chart}": both for name, charted in drawn.items() for chart, both in charted.items()}
        for name, both in (pictures | ({"scaling": together} if together else {})).items():
            for suffix, picture in both.items():
                path = options.figures / f"{name}{suffix}"
                records.write_bytes(path, picture)
                print(f"{PROGRAM}: wrote {path}", file=sys.stderr)
    if options.html:
        svgs = {name: {chart: both[".svg"] for chart, both in charted.items()} for name, charted in drawn.items()}
        records.write_bytes(options.html, page.render(named, svgs, together.get(".svg")).encode())
        print(f"{PROGRAM}: wrote {options.html}", file=sys.stderr)


def _projected(options: argparse.Namespace) -> int:
    from . import projection

    return projection.main(options)


def _traced(options: argparse.Namespace) -> int:
    trace.export(records.read(options.files[0]), options.trace)
    print(f"{PROGRAM}: {options.trace} opens in https://ui.perfetto.dev", file=sys.stderr)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if given[:1] == ["compare"]:
            return _compared(_parse_compare(given[1:]))
        options = _parse(given)
        if options.trace:
            return _traced(options)
        return _projected(options) if options.project else _reported(options)
    except (OSError, ValueError) as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    gc.disable()  # a long record is very many objects, none of them in a cycle
    sys.exit(main())
