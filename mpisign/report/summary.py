"""A finished run, summed up once: tables, notes, charts and pages take their numbers from here."""

from __future__ import annotations

from dataclasses import dataclass

from . import phases, samples
from .phases import Breakdown
from .records import Run
from .rows import Comparison, Row, overlapped_rows, serial_rows, widest_interval
from .samples import Measured


@dataclass(frozen=True)
class Summary:
    """What a run says.

    `measured` has its samples by size, and `answers` how the fastest vote compares with the fastest rival; the size of
    a model is None. `fastest` has which these are, also where one of them is lacking. `at_ceiling` lists the methods
    that took no longer than the one that sends nothing. `breakdown` is of a model alone. `iterations` is how many there
    were, the fewest and the most; `widest` is how far the interval of any speed-up reaches to its farther side, as a
    share of it. `smallest` has the smallest differences that such runs mostly find, as shares: of each row from the
    baseline; `smallest_answers` those of the fastest vote from the fastest rival; both in rising order. With too few
    samples they are infinite.
    """

    run: Run
    measured: dict[int | None, Measured]
    rows: list[Row]
    answers: dict[int | None, Row | None]
    fastest: dict[int | None, tuple[str | None, str | None]]
    at_ceiling: list[str]
    breakdown: Breakdown | None
    iterations: tuple[int, int]
    widest: float
    smallest: list[float]
    smallest_answers: list[float]

    @property
    def answer(self) -> Row | None:
        """How the fastest vote compares with the fastest rival on a model; None for a sweep."""
        return self.answers.get(None)

    @property
    def samples(self) -> int:
        """How many samples the method with the fewest has: iterations, or blocks of them."""
        return int(self.iterations[0] // self.run.head["block"])

    @property
    def is_sweep(self) -> bool:
        """Whether bare vectors of several sizes were exchanged, and no model's gradient."""
        return bool(self.run.head["config"]["sizes"])

    @property
    def overlaps(self) -> bool:
        """Whether the run's schedule is "overlap"."""
        return bool(self.run.head["config"]["schedule"] == "overlap")


def summarize(run: Run) -> Summary:
    """Sum up a run that has all its samples."""
    config, groups = run.head["config"], samples.grouped(run)
    sweep, overlaps = bool(config["sizes"]), config["schedule"] == "overlap"
    measured = {size: samples.measured(run, size, groups=groups) for size in config["sizes"] or [None]}
    comparisons = {size: Comparison(run, one) for size, one in measured.items()}
    found = {(size, method): share for size, one in comparisons.items() for method, share in one.smallest().items()}
    if overlaps:
        rows = overlapped_rows(run, comparisons[None])
    else:
        rows = [row for size, one in comparisons.items() for row in serial_rows(run, one, size=size)]
    return Summary(
        run,
        measured,
        rows,
        answers={size: one.answer() for size, one in comparisons.items()},
        fastest={size: (one.vote, one.rival) for size, one in comparisons.items()},
        at_ceiling=[
            method for method in run.head["methods"] if any(one.at_ceiling(method) for one in comparisons.values())
        ],
        breakdown=None if sweep else phases.breakdown(run, groups),
        iterations=samples.iterations(run),
        widest=max(widest_interval(run, one) for one in measured.values()),
        smallest=sorted(share for (_, method), share in found.items() if method),
        smallest_answers=sorted(share for (_, method), share in found.items() if not method),
    )
