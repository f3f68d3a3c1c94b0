"""The charts of `mpisign.report --project`: iterations over bandwidth and over P, break-even, and errors of the fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..network.cost import FORMULAS, GBIT, MODELLED_VOTES
from .looks import APART, GREY, looks, plain_numbers
from .projection import RANKS, SCHEDULES, Projection, errors_text, limit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

BANDWIDTHS = np.geomspace(0.1, 400, 300)  # Gbit/s
WIDTHS = (3.6, 2, 0.9)
EVERY = 60  # of these have a marker; each curve's lie elsewhere
LOOKS = looks({name: formula.kind for name, formula in FORMULAS.items()})
COLOURS = {name: look["color"] for name, look in LOOKS.items()}


def draw(made: Projection) -> Figure:
    """Draw iterations over bandwidth and over P, break-even bandwidths, and the errors of the fit."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 9.5), layout="constrained")
    axes = figure.subplots(2, 3)
    for row, schedule in enumerate(SCHEDULES):
        _over_bandwidth(axes[row, 0], made, schedule=schedule)
        _over_ranks(axes[row, 1], made, schedule=schedule)
    _break_even_lines(axes[0, 2], made)
    _errors(axes[1, 2], made)
    axes[0, 1].legend(fontsize=8, ncols=2, loc="upper left")
    figure.suptitle("An iteration on another network: a projection, no measurement")
    figure.supxlabel("\n".join(made.assumptions()), fontsize=8, x=0.01, ha="left")
    return figure


def _line(name: str) -> dict[str, Any]:
    """Return how a curve is drawn: thinner than the one before, with which it most often coincides; so both show."""
    width = WIDTHS[list(FORMULAS).index(name) % len(WIDTHS)]
    return {**LOOKS[name], "label": name, "linewidth": width, "markersize": 5}


def _turn(made: Projection, name: str) -> float:
    """Return where in turn a curve comes, from 0 to below 1."""
    return list(made.rates).index(name) / len(made.rates)


def _over_bandwidth(axes: Axes, made: Projection, *, schedule: str) -> None:
    for name in made.rates:
        axes.plot(
            BANDWIDTHS,
            _milliseconds(made, name, ranks=[made.ranks], bandwidths=BANDWIDTHS, schedule=schedule),
            **_line(name),
            markevery=(int(EVERY * _turn(made, name)), EVERY),
        )
    marks = []
    for kind, dash in zip(made.rivals(), ("-.", ":"), strict=False):
        at = made.break_even(kind, made.ranks, schedule=schedule)
        inside = BANDWIDTHS[0] <= at <= BANDWIDTHS[-1]
        mark = f"the best vote {limit(at)}"
        if 0 < at < math.inf:
            mark = f"{made.best(made.ranks, at)} pays up to {limit(at)} Gbit/s"
        marks.append(axes.axvline(at if inside else math.nan, c=GREY, ls=dash, label=f"{mark} against {kind}"))
    axes.legend(handles=marks, fontsize=8, loc="upper right")
    axes.set(xlabel="Gbit/s", ylabel="iteration, ms", title=f"{schedule}, {made.ranks} hosts")
    _log(axes.set_xscale, axes.xaxis)
    _log(axes.set_yscale, axes.yaxis)


def _over_ranks(axes: Axes, made: Projection, *, schedule: str) -> None:
    lines = {
        name: _milliseconds(made, name, ranks=RANKS, bandwidths=[made.bandwidth], schedule=schedule)
        for name in made.rates
    }
    for name, line in lines.items():
        axes.plot([P * 2 ** (APART * (_turn(made, name) - 0.5)) for P in RANKS], line, **_line(name))
    # The axis ends where a line is far slower than every rival, so that the others can be told apart.
    slowest = max(max(line) for name, line in lines.items() if name not in MODELLED_VOTES)
    top = min(4 * slowest, 1.1 * max(map(max, lines.values())))
    axes.set(ylabel="iteration, ms", title=f"{schedule}, {made.bandwidth:g} Gbit/s")
    axes.set_ylim(0.9 * min(map(min, lines.values())), top)
    _log(axes.set_yscale, axes.yaxis)
    _ranks_axis(axes)
    axes.set_xlabel("hosts (points a little aside of each other)")


def _milliseconds(
    made: Projection,
    name: str,
    *,
    ranks: Sequence[int],
    bandwidths: Sequence[float] | NDArray[np.float64],
    schedule: str,
) -> list[float]:
    """Return iterations over the ranks or over the bandwidths, of which the other is one."""
    hidden, compute = made.hidden(schedule), made.model.compute_s
    curves = [made.curve(name, P) for P in ranks]
    return [1e3 * (compute + each.seconds(at * GBIT, hidden)) for each in curves for at in bandwidths]


def _log(rescale: Callable[[str], None], axis: Axis) -> None:
    """Make an axis logarithmic, with plain numbers on it."""
    rescale("log")
    plain_numbers(axis, (1, 2, 5))


def _ranks_axis(axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(RANKS, [str(P) for P in RANKS], fontsize=8)
    axes.set_xlabel("hosts")


def _break_even_lines(axes: Axes, made: Projection) -> None:
    for kind, rivals in made.rivals().items():
        for schedule, dash in zip(SCHEDULES, ("-", "--"), strict=True):
            at = [made.break_even(kind, P, schedule=schedule) for P in RANKS]
            inside = [value if 0 < value < math.inf else math.nan for value in at]
            axes.plot(RANKS, inside, ls=dash, marker=".", c=COLOURS[rivals[0]], label=f"against {kind}, {schedule}")
    axes.set(ylabel="Gbit/s", title="break-even: below its line the best vote pays")
    _log(axes.set_yscale, axes.yaxis)
    axes.legend(fontsize=8)
    _ranks_axis(axes)


def _errors(axes: Axes, made: Projection) -> None:
    for y, (name, errors) in enumerate(made.errors.items()):
        for values, marker, what in ((errors.sizes, "o", "other sizes"), (errors.ranks, "x", "other P")):
            axes.plot([100 * value for value in values], [y] * len(values), marker, c=COLOURS[name], ms=5, alpha=0.7)
            if y == 0 and values:
                axes.plot([], [], marker, c=GREY, label=what)
    labels = [f"{name}\n{errors_text([*errors.sizes, *errors.ranks])}" for name, errors in made.errors.items()]
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.invert_yaxis()
    axes.legend(fontsize=8)
    axes.set(xlabel="relative error, %", title="errors where points were held out: all; median", xlim=(0, None))
