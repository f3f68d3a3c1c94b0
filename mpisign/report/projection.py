"""What an iteration would take on another network: `mpisign.report --project`.

The model of `cost` is fitted from sweeps; then the wire's bandwidth is replaced by others, its latency perhaps too, and
the coding stays as it was measured. One rank a host: every byte goes over the wire.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..network import cost
from ..network.cost import FORMULAS, GBIT, Curve, Errors, Point, Rates, terms
from . import charts, records, table
from .records import Run
from .rows import COMPUTE_SPANS, comm_samples, compute_samples, grouped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

RANKS = tuple(2**k for k in range(1, 13))
BANDWIDTHS = np.geomspace(0.1, 400, 300)  # Gbit/s
RESNET50_COORDINATES = 25_557_032
# Backward computes two products of a layer's size, for its weights and for its inputs, where forward computes one.
BACKWARD = 2 / 3
RIVALS = {"fp32": cost.FP32, "bf16": ("bf16",)}
SCHEDULES = ("serial", "overlapped")
COLOURS = dict(zip(FORMULAS, ("black", "dimgrey", "darkgrey", "C5", "C1", "C0", "C3", "C2", "C4", "C6"), strict=True))


@dataclass(frozen=True)
class Model:
    """What is trained: coordinates, compute seconds of an iteration, those of backward among them, and who says so."""

    coordinates: int
    compute_s: float
    backward_s: float
    source: str


@dataclass(frozen=True)
class Projection:
    """What is projected, and from what: each method's rates, and how far they are off where they were not fitted."""

    model: Model
    rates: dict[str, Rates]
    errors: dict[str, Errors]
    ranks: int
    bandwidth: float  # Gbit/s
    latency: float | None  # seconds; None: as fitted
    notes: tuple[str, ...]

    def curve(self, method: str, P: int) -> Curve:
        """Return a method's exchange among P hosts."""
        return cost.curve(method, P, self.model.coordinates, self.rates[method], self.latency)

    def hidden(self, schedule: str) -> float:
        """Return the seconds of an exchange that backward can hide."""
        return self.model.backward_s if schedule == "overlapped" else 0.0

    def votes(self) -> list[str]:
        """Return the votes that were fitted."""
        return [name for name in self.rates if name in cost.MODELLED_VOTES]

    def rivals(self) -> dict[str, list[str]]:
        """Return the fitted all-reduces by what they send."""
        found = {kind: [name for name in names if name in self.rates] for kind, names in RIVALS.items()}
        return {kind: names for kind, names in found.items() if names}

    def break_even(self, kind: str, P: int, schedule: str) -> float:
        """Return the bandwidth in Gbit/s up to which the best vote pays against a kind of rival among P hosts."""
        votes, rivals = ([self.curve(name, P) for name in names] for names in (self.votes(), self.rivals()[kind]))
        return cost.break_even(votes, rivals, self.hidden(schedule)) / GBIT

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
        ]


def settle(options: argparse.Namespace) -> Projection:
    """Read the records, fit the model, and put the question.

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
    groups = cost.by_method(point for path, run in sweeps.items() for point in _points(path, run))
    if options.project_methods:
        asked = options.project_methods.split(",")
        for name in asked:
            cost.check(name)
            if name not in groups:
                raise ValueError(f"--project-methods: no sweep given has {name}")
        groups = {name: group for name, group in groups.items() if name in asked}
    rates = {name: cost.fit(group) for name, group in groups.items()}
    errors = {name: cost.held_out(group) for name, group in groups.items()}
    model = _model(next(iter(models.values()), None), options)
    latency = None if options.latency_us is None else 1e-6 * options.latency_us
    made = Projection(model, rates, errors, options.ranks, options.bandwidth, latency, _notes(sweeps.values()))
    if not made.votes() or not made.rivals():
        raise ValueError(f"the sweeps have no vote with an all-reduce in fp32 or bf16: only {', '.join(rates)}")
    return made


def _points(path: Path, run: records.Run) -> list[cost.Point]:
    try:
        return points(run)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _model(run: records.Run | None, options: argparse.Namespace) -> Model:
    coordinates, compute_s, share, told = RESNET50_COORDINATES, None, BACKWARD, ["backward taken for 2/3 of it"]
    if run is not None:
        compute_s, share = _compute(run)
        coordinates, told = run.head["coordinates"], [f"a run of {run.head['config']['model']}"]
    if options.compute_ms:
        compute_s, told = 1e-3 * options.compute_ms, ["compute as given", *told]
    if compute_s is None:
        raise ValueError("--project needs --compute-ms, or a run of a model beside the sweeps")
    return Model(options.coordinates or coordinates, compute_s, share * compute_s, ", ".join(told))


def _compute(run: records.Run) -> tuple[float, float]:
    """Return the seconds of an iteration's compute, the slowest rank's, and the share of backward in it."""
    shares = [line["backward"] / sum(line[name] for name in COMPUTE_SPANS) for line in run.compute]
    return float(np.median(compute_samples(run))), float(np.median(shares))


def _notes(sweeps: Iterable[records.Run]) -> tuple[str, ...]:
    machines = [run.head["machine"] for run in sweeps]
    ranks = ", ".join(str(P) for P in sorted({facts["ranks"] for facts in machines}))
    notes = [f"Fitted from sweeps of {ranks} ranks on {', '.join(sorted({facts['device'] for facts in machines}))}."]
    if any(facts["ranks_per_core"] > 1 for facts in machines):
        notes.append("WARNING: ranks shared cores in a sweep: its latency and coding are too slow.")
    return tuple(notes)


def render(made: Projection, style: str) -> str:
    """Return the fit, its errors, and the break-even bandwidths as tables."""
    blocks = ["The fit, and its relative errors where points were held out:\n", _fit_table(made, style)]
    blocks += ["\nBreak-even bandwidth, Gbit/s: slower wires than that favour the best vote:\n"]
    return "\n".join([*blocks, _break_even_table(made, style), "", *made.assumptions()])


def _fit_table(made: Projection, style: str) -> str:
    cells = [[name, *map(_digits, _units(rates)), *map(_said, made.errors[name])] for name, rates in made.rates.items()]
    headers = ["method", "latency us", "Gbit/s", "coding ns", "ballot ps", "call us", "error, other sizes", "other P"]
    return table.grid(cells, headers, style)


def _units(rates: Rates) -> list[float]:
    """Return the rates in the units of the table."""
    bandwidth = 1 / rates.beta / GBIT if rates.beta else math.inf
    return [1e6 * rates.alpha, bandwidth, 1e9 * rates.gamma, 1e12 * rates.delta, 1e6 * rates.fixed]


def _digits(value: float) -> str:
    return f"{value:.3g}"


def _said(errors: Sequence[float]) -> str:
    return f"{100 * np.median(errors):.0f} %, at worst {100 * max(errors):.0f} %" if errors else ""


def _break_even_table(made: Projection, style: str) -> str:
    columns = [(kind, schedule) for schedule in SCHEDULES for kind in made.rivals()]
    cells = [
        [P, made.best(P, made.bandwidth), *(limit(made.break_even(kind, P, schedule)) for kind, schedule in columns)]
        for P in RANKS
    ]
    headers = ["P", f"best at {made.bandwidth:g} Gbit/s", *(f"{kind}, {schedule}" for kind, schedule in columns)]
    return table.grid(cells, headers, style)


def limit(bandwidth: float) -> str:
    """Write a break-even bandwidth."""
    return {0.0: "never pays", math.inf: "always pays"}.get(bandwidth) or _digits(bandwidth)


def draw(made: Projection) -> Figure:
    """Draw iterations over bandwidth and over P, break-even bandwidths, and the errors of the fit."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 9.5), layout="constrained")
    axes = figure.subplots(2, 3)
    for row, schedule in enumerate(SCHEDULES):
        _over_bandwidth(axes[row, 0], made, schedule)
        _over_ranks(axes[row, 1], made, schedule)
    _break_even_lines(axes[0, 2], made)
    _errors(axes[1, 2], made)
    axes[0, 1].legend(fontsize=8, ncols=2, loc="upper left")
    figure.suptitle("An iteration on another network: a projection, no measurement")
    figure.supxlabel("\n".join(made.assumptions()), fontsize=8, x=0.01, ha="left")
    return figure


def _line(name: str) -> dict[str, Any]:
    return {"c": COLOURS[name], "ls": "-" if name in cost.MODELLED_VOTES else "--", "label": name, "lw": 1.3}


def _over_bandwidth(axes: Axes, made: Projection, schedule: str) -> None:
    for name in made.rates:
        axes.plot(BANDWIDTHS, _milliseconds(made, name, [made.ranks], BANDWIDTHS, schedule), **_line(name))
    marks = []
    for kind, dash in zip(made.rivals(), ("-.", ":"), strict=False):
        at = made.break_even(kind, made.ranks, schedule)
        inside = BANDWIDTHS[0] <= at <= BANDWIDTHS[-1]
        told = f"the best vote {limit(at)}"
        if 0 < at < math.inf:
            told = f"{made.best(made.ranks, at)} pays up to {limit(at)} Gbit/s"
        marks.append(axes.axvline(at if inside else math.nan, c="C7", ls=dash, label=f"{told} against {kind}"))
    axes.legend(handles=marks, fontsize=8, loc="upper right")
    axes.set(xlabel="Gbit/s", ylabel="iteration, ms", title=f"{schedule}, {made.ranks} hosts")
    _log(axes.set_xscale, axes.xaxis)
    _log(axes.set_yscale, axes.yaxis)


def _over_ranks(axes: Axes, made: Projection, schedule: str) -> None:
    lines = {name: _milliseconds(made, name, RANKS, [made.bandwidth], schedule) for name in made.rates}
    for name, line in lines.items():
        axes.plot(RANKS, line, marker=".", **_line(name))
    # What is far slower than every rival leaves the picture, for the others' sake.
    slowest = max(max(line) for name, line in lines.items() if name not in cost.MODELLED_VOTES)
    top = min(4 * slowest, 1.1 * max(map(max, lines.values())))
    axes.set(ylabel="iteration, ms", title=f"{schedule}, {made.bandwidth:g} Gbit/s")
    axes.set_ylim(0.9 * min(map(min, lines.values())), top)
    _log(axes.set_yscale, axes.yaxis)
    _ranks_axis(axes)


def _milliseconds(
    made: Projection, name: str, ranks: Sequence[int], bandwidths: Sequence[float] | NDArray[np.float64], schedule: str
) -> list[float]:
    """Return iterations over the ranks or over the bandwidths, of which the other is one."""
    hidden, compute = made.hidden(schedule), made.model.compute_s
    curves = [made.curve(name, P) for P in ranks]
    return [1e3 * (compute + each.seconds(at * GBIT, hidden)) for each in curves for at in bandwidths]


def _log(rescale: Callable[[str], None], axis: Axis) -> None:
    """Make an axis logarithmic, with plain numbers on it."""
    rescale("log")
    charts.plain_numbers(axis, (1, 2, 5))


def _ranks_axis(axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(RANKS, [str(P) for P in RANKS], fontsize=8)
    axes.set_xlabel("hosts")


def _break_even_lines(axes: Axes, made: Projection) -> None:
    for i, kind in enumerate(made.rivals()):
        for schedule, dash in zip(SCHEDULES, ("-", "--"), strict=True):
            at = [made.break_even(kind, P, schedule) for P in RANKS]
            inside = [value if 0 < value < math.inf else math.nan for value in at]
            axes.plot(RANKS, inside, ls=dash, marker=".", c=f"C{i}", label=f"against {kind}, {schedule}")
    axes.set(ylabel="Gbit/s", title="break-even: below its line the best vote pays")
    _log(axes.set_yscale, axes.yaxis)
    axes.legend(fontsize=8)
    _ranks_axis(axes)


def _errors(axes: Axes, made: Projection) -> None:
    for y, (name, errors) in enumerate(made.errors.items()):
        for values, marker, what in ((errors.sizes, "o", "other sizes"), (errors.ranks, "x", "other P")):
            axes.plot([100 * value for value in values], [y] * len(values), marker, c=COLOURS[name], ms=5, alpha=0.7,
                      label=what if y == 0 and values else None)  # fmt: skip
    labels = [f"{name}\n{_said([*errors.sizes, *errors.ranks])}" for name, errors in made.errors.items()]
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.invert_yaxis()
    axes.legend(fontsize=8)
    axes.set(xlabel="relative error, %", title="errors where points were held out: all; median", xlim=(0, None))


def main(options: argparse.Namespace) -> int:
    """Project; return the exit code."""
    try:
        if options.format not in ("table", "markdown"):
            raise ValueError("--project prints a table or markdown")
        made = settle(options)
        print(render(made, "pipe" if options.format == "markdown" else "simple"))
        kept = charts.write(options.project, lambda: draw(made))
    except ModuleNotFoundError as error:
        print(f"mpisign.report: error: --project needs {error.name}: pip install 'mpisign[plots]'", file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:
        print(f"mpisign.report: error: {error}", file=sys.stderr)
        return 2
    print(f"mpisign.report: drawn in {', '.join(map(str, kept))}", file=sys.stderr)
    return 0


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
    found = []
    for size, exchanged in grouped(run.exchange, "bytes").items():
        samples, lines = comm_samples(Run(run.head, exchanged), size), grouped(exchanged, "method")
        for method in names:
            taken = terms(method, facts["ranks"], size // 4, facts["nodes"], config["tie"])
            coding, vote = (_median(lines[method], spans) for spans in (("pack", "unpack"), ("vote",)))
            whole = float(np.median(samples[method]))
            found.append(Point(method, facts["ranks"], size // 4, taken, whole, coding, vote))
    return found


def _median(lines: Iterable[dict[str, Any]], spans: Sequence[str]) -> float:
    """Return the median seconds in these spans of the ranks that have them."""
    kept = [sum(line.get(name, 0.0) for name in spans) for line in lines if spans[0] in line]
    return float(np.median(kept)) if kept else 0.0
