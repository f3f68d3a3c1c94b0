"""`mpisign.report RUN/log.jsonl...`: print trainings as a table, draw their curves, and make a page of them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from . import outputs, training_log, training_table
from .training_log import Training


def main(options: argparse.Namespace) -> int:
    """Write charts and a page, or print the table, whichever is asked for; return the exit code.

    Raises:
        ValueError: an argument or a log won't do.
        OSError: a file can't be read or written.

    """
    trainings = settle(options)
    if form := outputs.form(options):
        print(training_table.render(trainings, form, per_iteration=options.per_iteration), flush=True)
    if options.figures or options.html:
        _draw(options, trainings)
    return 0


def settle(options: argparse.Namespace) -> list[Training]:
    """Read the logs, and refuse what can't be printed or drawn before anything is.

    Raises:
        ValueError: an argument or a log won't do.
        OSError: a log can't be read.

    """
    for name in ("trace", "project", "baseline", "wide"):
        if getattr(options, name):
            raise ValueError(f"--{name} takes records of mpisign.bench, {options.files[0]} is the log of a training")
    if options.format and options.format not in training_table.FORMATS:
        raise ValueError(f"--format {options.format}: trainings are printed as {', '.join(training_table.FORMATS)}")
    names = training_log.names(options.files)
    trainings = [training_log.read(path, name) for path, name in zip(options.files, names, strict=True)]
    if options.figures or options.html:
        _refuse_charts(options, trainings)
    return trainings


def _refuse_charts(options: argparse.Namespace, trainings: Sequence[Training]) -> None:
    """Raise a ValueError if the charts can't be drawn or written."""
    from . import charts

    if reason := charts.missing():
        raise ValueError(reason)
    for path, training in zip(options.files, trainings, strict=True):
        if not training.steps:
            raise ValueError(f"{path} has no step yet: there is nothing to draw")
    outputs.refuse(options, "logs")


def _draw(options: argparse.Namespace, trainings: Sequence[Training]) -> None:
    """Draw the curves, and write them as files, as a page, or both."""
    from . import charts, training_charts, training_page

    suffixes = outputs.suffixes(options)
    drawn = {name: charts.pictures(draw, suffixes) for name, draw in training_charts.drawings(trainings).items()}
    if options.figures:
        outputs.write_charts(options.figures, drawn)
    if options.html:
        svgs = {name: both[".svg"] for name, both in drawn.items()}
        outputs.write(options.html, training_page.render(trainings, svgs).encode())
