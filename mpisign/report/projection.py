"""What an iteration would take on another network: `mpisign.report --project`.

The model of `network.cost` is fitted from sweeps. Then other bandwidths, and if asked another latency, replace the
wire's own, and the coding stays as it was measured. Each host has one rank, so every byte goes over the wire.

A fit that was off by e where points were held out makes a band of a time: t / (1 + e) to t / (1 - e). A break-even is
named with the band that follows, and not at all beyond LIMIT.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..network import cost
from ..network.cost import FORMULAS, GBIT, Curve, Errors, Point, Rates, terms
from . import charts, records, table, text
from .records import Run
from .samples import COMPUTE_SPANS, Lines, compute_samples, grouped, measured, slowest

RANKS = tuple(2**k for k in range(1, 13))
RESNET50_COORDINATES = 25_557_032
# Backward computes two products of a layer's size, for its weights and for its inputs, where forward computes one.
BACKWARD = 2 / 3
RIVALS = {"fp32": cost.FP32, "bf16": ("bf16", "bf16-mpi")}
SCHEDULES = ("serial", "overlapped")
LIMIT = 0.5  # of a fit's largest error where points were held out: beyond it a time may be over twice what it says
FAST, AS_FITTED, SLOW = -1, 0, 1


def points(run: Run) -> list[Point]:
    """Return a point for each size and method of a sweep that the model knows.

    Raises:
        ValueError: the run is no sweep, or has none of these methods.

    """
    config, facts = run.head["config"], run.head["machine"]
    if not config["sizes"]:
        raise ValueError("is no sweep over sizes (mpisign.bench --sizes)")
    names = [method for method in run.head["methods"] if method in FORMULAS]
    if not names:
        raise ValueError(f"has no method that the model knows ({', '.join(FORMULAS)})")
    found, groups = [], grouped(run)
    for size in config["sizes"]:
        for method in names:
            lines = groups["exchange", size][method]
            taken = terms(method, facts["ranks"], d=size // 4, nodes=facts["nodes"], tie=config["tie"])
            coding, vote = (_median(lines, spans) for spans in (("pack", "unpack"), ("vote",)))
            whole = float(np.median(slowest(lines, ("seconds",))))
            found.append(Point(method, facts["ranks"], size // 4, taken, whole, coding, vote))
    return found


def wrong_methods(run: Run) -> list[str]:
    """Return the methods of a sweep that had a wrong result, of whatever size."""
    groups = grouped(run)
    sizes = [measured(run, size, groups=groups) for size in run.head["config"]["sizes"]]
    return [method for method in run.head["methods"] if any(size.wrong[method] for size in sizes)]


def _median(lines: Lines, spans: Sequence[str]) -> float:
    """Return the median seconds in these spans of the ranks that have them."""
    kept = [sum(line.get(name, 0.0) for name in spans) for line in lines if spans[0] in line]
    return float(np.median(kept)) if kept else 0.0


@dataclass(frozen=True)
class Model:
    """What is trained: coordinates, compute seconds of an iteration, those of backward among them, and who says so."""

    coordinates: int
    compute_s: float
    backward_s: float
    source: str


class Band(NamedTuple):
    """A break-even, Gbit/s, and how low and high it may be if each fit is as far off as it was at worst."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Projection:
    """What is projected, and from what: the rates of each method, and their errors where points were held out."""

    model: Model
    rates: dict[str, Rates]
    errors: dict[str, Errors]
    ranks: int
    bandwidth: float  # Gbit/s
    latency: float | None  # seconds; None: as fitted
    notes: tuple[str, ...]

    def error(self, method: str) -> float:
        """Return how far off a method's fit was at worst where points were held out, as a share."""
        return max(*self.errors[method].sizes, *self.errors[method].ranks)

    def curve(self, method: str, P: int, off: int = AS_FITTED) -> Curve:
        """Return a method's exchange among P hosts; FAST or SLOW: as far off as the fit was at worst.

        Nobody knows how slow it may be whose error is 1 or more.
        """
        fitted = cost.curve(method, P, d=self.model.coordinates, rates=self.rates[method], latency=self.latency)
        share = 1 - off * self.error(method)
        return Curve(fitted.fixed_s / share, round(fitted.bytes / share))

    def hidden(self, schedule: str) -> float:
        """Return the seconds of an exchange that backward can hide."""
        return self.model.backward_s if schedule == "overlapped" else 0.0

    def votes(self) -> list[str]:
        """Return the votes that were fitted and are off by LIMIT at most; to leave one out can only favour rivals."""
        return [name for name in self.rates if name in cost.MODELLED_VOTES and self.error(name) <= LIMIT]

    def rivals(self) -> dict[str, list[str]]:
        """Return the fitted all-reduces by what they send."""
        fitted = {kind: [name for name in names if name in self.rates] for kind, names in RIVALS.items()}
        return {kind: names for kind, names in fitted.items() if names}

    def far_off(self) -> list[str]:
        """Return the methods whose fit is off by more than LIMIT."""
        return [name for name in self.rates if self.error(name) > LIMIT]

    def refusal(self, kind: str) -> str | None:
        """Say why no break-even against a kind of rival is named, or None.

        No rival is left out, for that could only favour votes.
        """
        rivals = [name for name in self.rivals()[kind] if name in self.far_off()]
        told = [f"{name} by {text.percent(self.error(name))}" for name in rivals]
        if not self.votes():
            least = min(self.error(name) for name in self.rates if name in cost.MODELLED_VOTES)
            told.append(f"each vote by {text.percent(least)} or more")
        if not told:
            return None
        return (
            f"No break-even against {kind} is named, for at worst, where points were held out, the fit was off by more "
            f"than {text.percent(LIMIT)}: {', '.join(told)}."
        )

    def break_even(self, kind: str, P: int, *, schedule: str) -> Band:
        """Return the bandwidth in Gbit/s up to which the best vote pays against a kind of rival among P hosts.

        It is for a kind without a `refusal`.
        """

        def when(votes: int, rivals: int) -> float:
            curves = ([self.curve(name, P, off) for name in names]
                      for names, off in ((self.votes(), votes), (self.rivals()[kind], rivals)))  # fmt: skip
            return cost.break_even(*curves, hidden_s=self.hidden(schedule)) / GBIT

        return Band(when(AS_FITTED, AS_FITTED), when(SLOW, FAST), when(FAST, SLOW))

    def best(self, P: int, bandwidth: float) -> str:
        """Return the vote with the shortest exchange."""
        return min(self.votes(), key=lambda name: self.curve(name, P).seconds(bandwidth * GBIT))

    def assumptions(self) -> list[str]:
        """Say what the numbers rest on."""
        latency = "as fitted, method by method" if self.latency is None else f"{1e6 * self.latency:g} us a message"
        model, hidden = self.model, 1e3 * self.model.backward_s
        return [
            f"{model.coordinates:,} coordinates; compute {1e3 * model.compute_s:.4g} ms, of which backward "
            f"{hidden:.4g} ms ({model.source}).",
            f"One rank a host; bytes over the bandwidth; latency {latency}; an all-reduce is granted the fewest "
            "messages, and its arithmetic for nothing; coding of votes as measured; ties +1.",
            f"Overlapped: only what an exchange takes longer than backward ({hidden:.4g} ms) is seen; "
            "a first bucket that comes late, or coding that slows backward down, is not counted.",
            *self.notes,
            *self.doubts(),
        ]

    def doubts(self) -> list[str]:
        """Say what is not named, as the fit is too far off, and what the bands are."""
        said = [refusal for kind in self.rivals() if (refusal := self.refusal(kind))]
        votes = [name for name in self.far_off() if name in cost.MODELLED_VOTES]
        if votes and self.votes():
            said.append(f"Not among the best votes, off by more than {text.percent(LIMIT)}: {', '.join(votes)}.")
        if self.far_off():
            said.append(
                "A better fit may come of sizes near the gradient's, more iterations, and a core or more for each rank."
            )
        if any(self.error(name) < 1 for name in self.rates):
            said.append("Bands: as if each fit were as far off as it was at worst where points were held out.")
        return said


def settle(options: argparse.Namespace) -> Projection:
    """Read the records and fit the model.

    Raises:
        ValueError: the records or the options don't allow a projection.
        OSError: a record cannot be read.

    """
    runs = {path: records.read(path) for path in options.files}
    sweeps = {path: run for path, run in runs.items() if run.head["config"]["sizes"]}
    models = {path: run for path, run in runs.items() if path not in sweeps}
    if not sweeps:
        raise ValueError(
            f"{', '.join(map(str, runs))}: no sweep over sizes (mpisign.bench --sizes) to fit the model from"
        )
    if len(models) > 1:
        raise ValueError(f"{', '.join(map(str, models))}: --project takes one run of a model at most")
    for name, value in (("ranks", options.ranks), ("coordinates", options.coordinates)):
        if value is not None and value < 1:
            raise ValueError(f"--{name}: must be at least 1, got {value}")
    wrong = list(dict.fromkeys(method for run in sweeps.values() for method in wrong_methods(run)))
    groups = cost.by_method(
        point for path, run in sweeps.items() for point in _points(path, run) if point.method not in wrong
    )
    if options.project_methods:
        asked = options.project_methods.split(",")
        for name in asked:
            cost.check(name)
            if name in wrong:
                raise ValueError(f"--project-methods: {name} had wrong results in a sweep")
            if name not in groups:
                raise ValueError(f"--project-methods: no sweep given has {name}")
        groups = {name: group for name, group in groups.items() if name in asked}
    rates = {name: cost.fit(group) for name, group in groups.items()}
    errors = {name: cost.held_out(group) for name, group in groups.items()}
    model = _model(next(iter(models.values()), None), options)
    latency = None if options.latency_us is None else 1e-6 * options.latency_us
    made = Projection(model, rates, errors, options.ranks, options.bandwidth, latency, _notes(sweeps.values(), wrong))
    if not made.rivals() or not set(rates).intersection(cost.MODELLED_VOTES):
        left_out = f", without {', '.join(wrong)}, which had wrong results" if wrong else ""
        raise ValueError(
            f"the sweeps have no vote with an all-reduce in fp32 or bf16: only {', '.join(rates)}{left_out}"
        )
    return made


def _points(path: Path, run: Run) -> list[Point]:
    try:
        return points(run)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _model(run: Run | None, options: argparse.Namespace) -> Model:
    coordinates, compute_s, share = RESNET50_COORDINATES, None, BACKWARD
    sources = ["backward taken for 2/3 of it"]
    if run is not None:
        compute_s, share = _compute(run)
        coordinates, sources = run.head["coordinates"], [f"a run of {run.head['config']['model']}"]
    if options.compute_ms:
        compute_s, sources = 1e-3 * options.compute_ms, ["compute as given", *sources]
    if compute_s is None:
        raise ValueError("--project needs --compute-ms, or a run of a model beside the sweeps")
    return Model(options.coordinates or coordinates, compute_s, share * compute_s, ", ".join(sources))


def _compute(run: Run) -> tuple[float, float]:
    """Return the seconds of an iteration's compute, the slowest rank's, and the share of backward in it."""
    lines = Lines(run.compute)
    whole = sum(map(lines.column, COMPUTE_SPANS), np.zeros(1))
    if not whole.all():
        raise ValueError(f"a run of {run.head['config']['model']}: an iteration's compute took no time")
    return float(np.median(compute_samples(lines))), float(np.median(lines.column("backward") / whole))


def _notes(sweeps: Iterable[Run], wrong: Sequence[str]) -> tuple[str, ...]:
    machines = [run.head["machine"] for run in sweeps]
    ranks = [str(P) for P in sorted({facts["ranks"] for facts in machines})]
    devices = ", ".join(sorted({facts["device"] for facts in machines}))
    notes = [f"Fitted from sweeps of {', '.join(ranks)} ranks on {devices}."]
    if not ranks[1:]:
        notes.append("How far off the fit is at another number of ranks was not tried.")
    if any(facts["ranks_per_core"] > 1 for facts in machines):
        notes.append("WARNING: ranks shared cores in a sweep: its latency and coding are too slow.")
    if wrong:
        notes.append(f"WARNING: left out, for they had wrong results in a sweep: {', '.join(wrong)}.")
    return tuple(notes)


def render(made: Projection, style: str) -> str:
    """Return the fit, its errors, and the break-even bandwidths as tables."""
    blocks = ["The fit, and its relative errors where points were held out:\n", _fit_table(made, style)]
    if any(made.refusal(kind) is None for kind in made.rivals()):
        blocks += ["\nBreak-even bandwidth, Gbit/s [band]: slower wires than that favour the best vote:\n"]
        blocks += [_break_even_table(made, style)]
    return "\n".join([*blocks, "", *made.assumptions()])


def _fit_table(made: Projection, style: str) -> str:
    cells = [
        [
            name,
            *(_rounded(rate, _range(made.error(name))) for rate in _units(rates)),
            *map(errors_text, made.errors[name]),
        ]
        for name, rates in made.rates.items()
    ]
    headers = ["method", "latency us", "Gbit/s", "coding ns", "ballot ps", "call us", "error, other sizes", "other P"]
    return table.grid(cells, headers, style=style)


def _units(rates: Rates) -> list[float]:
    """Return the rates in the units of the table."""
    bandwidth = 1 / rates.beta / GBIT if rates.beta else math.inf
    return [1e6 * rates.alpha, bandwidth, 1e9 * rates.gamma, 1e12 * rates.delta, 1e6 * rates.fixed]


def _rounded(value: float, apart: float) -> str:
    """Write a number whose band ends so many times as high as it begins: with no more digits than that allows."""
    digits = 3 if apart < 1.05 else 2 if apart < 2 else 1
    return f"{float(f'{value:.{digits}g}'):g}"


def _range(error: float) -> float:
    """Return how many times as high as its beginning the end of a time's band is."""
    return (1 + error) / (1 - error) if error < 1 else math.inf


def errors_text(errors: Sequence[float]) -> str:
    """Write the median and the largest of relative errors."""
    return f"{100 * np.median(errors):.0f} %, at worst {100 * max(errors):.0f} %" if errors else ""


def _break_even_table(made: Projection, style: str) -> str:
    kinds = [kind for kind in made.rivals() if made.refusal(kind) is None]
    columns = [(kind, schedule) for schedule in SCHEDULES for kind in kinds]
    cells = [
        [
            P,
            made.best(P, made.bandwidth),
            *(limit(made.break_even(kind, P, schedule=schedule)) for kind, schedule in columns),
        ]
        for P in RANKS
    ]
    headers = ["P", f"best at {made.bandwidth:g} Gbit/s", *(f"{kind}, {schedule}" for kind, schedule in columns)]
    return table.grid(cells, headers, style=style)


def limit(band: Band) -> str:
    """Write a break-even bandwidth with its band, and no more digits than the band allows."""
    apart = band.high / band.low if band.low > 0 and band.high < math.inf else math.inf
    value, low, high = ({0.0: "never", math.inf: "always"}.get(each) or _rounded(each, apart) for each in band)
    pays = " pays" if band.value in (0.0, math.inf) else ""
    return f"{value}{pays}" if value == low == high else f"{value}{pays} [{low}, {high}]"


def main(options: argparse.Namespace) -> int:
    """Project; return the exit code."""
    from .projection_charts import draw

    try:
        if options.format not in (None, "table", "markdown"):
            raise ValueError("--project prints a table or markdown")
        made = settle(options)
        if options.format:
            print(render(made, "pipe" if options.format == "markdown" else "simple"))
        written = charts.write(options.project, lambda: draw(made))
    except ModuleNotFoundError as error:
        print(f"mpisign.report: error: --project needs {error.name}: pip install 'mpisign[plots]'", file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:
        print(f"mpisign.report: error: {error}", file=sys.stderr)
        return 2
    said = [] if options.format else [*(note for note in made.notes if note.startswith("WARNING")), *made.doubts()]
    said += [f"wrote {path}" for path in written]
    for line in said:
        print(f"mpisign.report: {line}", file=sys.stderr)
    return 0
