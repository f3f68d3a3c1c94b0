"""`mpisign.report FILE...`: print the tables of records again, draw their charts, and make a page of them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from . import outputs, records, table, text
from .records import Run
from .summary import Summary, summarize


def main(options: argparse.Namespace) -> int:
    """Write charts and a page, or print the tables, whichever is asked for; return the exit code.

    Raises:
        ValueError: an argument or a record won't do.
        OSError: a file can't be read or written.

    """
    runs = settle(options)
    summaries = list(map(summarize, runs))
    if form := outputs.form(options):
        tables = (
            table.render(
                summary,
                form,
                wide=options.wide,
                per_iteration=options.per_iteration,
                baseline=bool(options.baseline),
                width=text.terminal_width(),
            )
            for summary in summaries
        )
        print(("\n" if form == "lines" else "\n\n").join(tables), flush=True)
    if options.figures or options.html:
        _draw(options, dict(zip((path.stem for path in options.files), summaries, strict=True)))
    return 0


def settle(options: argparse.Namespace) -> list[Run]:
    """Read the records, and refuse what can't be printed or drawn before anything is.

    Raises:
        ValueError: an argument or a record won't do.
        OSError: a record can't be read.

    """
    if len(options.files) > 1 and options.format in ("csv", "json"):
        raise ValueError(f"--format {options.format} takes one record")
    runs = [records.read(path) for path in options.files]
    if options.baseline:
        for path, run in zip(options.files, runs, strict=True):
            _set_baseline(path, run, baseline=options.baseline)
    if options.figures or options.html:
        _refuse_charts(options, runs)
    return runs


def _set_baseline(path: Path, run: Run, *, baseline: str) -> None:
    able = [method for method in run.head["methods"] if run.kinds[method] != "ceiling"]
    if baseline not in able:
        raise ValueError(f"--baseline: {path} has no {baseline}, only {', '.join(able)}")
    if baseline != run.head["baseline"]:
        run.head["baseline"], run.baselines = baseline, len(able)


def _refuse_charts(options: argparse.Namespace, runs: Sequence[Run]) -> None:
    """Raise a ValueError if the charts can't be drawn or written."""
    from . import charts

    stems = [path.stem for path in options.files]
    for stem in stems:
        if stems.count(stem) > 1:
            raise ValueError(f"two of the records are called {stem}: their charts would be, too")
    if reason := charts.missing():
        raise ValueError(reason)
    if reason := charts.misfit(runs):
        raise ValueError(f"these records cannot be drawn together: {reason}")
    outputs.refuse(options, "records")


def _draw(options: argparse.Namespace, summaries: dict[str, Summary]) -> None:
    """Draw the charts of runs, by name, and write them as files, as a page, or both."""
    from . import charts, page

    suffixes = outputs.suffixes(options)
    drawn = {
        name: {chart: charts.pictures(draw, suffixes) for chart, draw in charts.drawings(summary).items()}
        for name, summary in summaries.items()
    }
    runs = list(summaries.values())
    together = charts.pictures(lambda: charts.scaling(runs), suffixes) if len(runs) > 1 else {}
    if options.figures:
        pictures = {f"{name}-{chart}": both for name, charted in drawn.items() for chart, both in charted.items()}
        outputs.write_charts(options.figures, pictures | ({"scaling": together} if together else {}))
    if options.html:
        svgs = {name: {chart: both[".svg"] for chart, both in charted.items()} for name, charted in drawn.items()}
        outputs.write(options.html, page.render(summaries, svgs, together=together.get(".svg")).encode())
