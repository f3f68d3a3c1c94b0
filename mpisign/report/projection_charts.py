"""The charts of `mpisign.report --project`: iterations over bandwidth and over P, break-even, and errors of the fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..network.cost import FORMULAS, GBIT, MODELLED_VOTES
from .looks import APART, GREY, looks, plain_numbers
from .projection import AS_FITTED, FAST, LIMIT, RANKS, SCHEDULES, SLOW, Projection, errors_text, limit
from .text import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

BANDWIDTHS: list[float] = np.geomspace(0.1, 400, 300).tolist()  # Gbit/s
XLIM = 0.8 * BANDWIDTHS[0], 1.25 * BANDWIDTHS[-1]
OPEN = 1e9  # beyond every axis: the upper end of a band that has none
WIDTHS = (3.6, 2, 0.9)
EVERY = 60  # of these have a marker; each curve's lie elsewhere
LOOKS = looks({name: formula.kind for name, formula in FORMULAS.items()})
COLOURS = {name: look["color"] for name, look in LOOKS.items()}


def draw(made: Projection) -> Figure:
    """Draw iterations over bandwidth and over P, break-even bandwidths, and the errors of the fit.

    Where every method is off by 1 or more, the errors are all that there is to draw.
    """
    from matplotlib.figure import Figure

    if all(made.error(name) >= 1 for name in made.rates):
        figure = Figure(figsize=(12, 6.5), layout="constrained")
        _errors(figure.subplots(), made)
        figure.suptitle("Another network: nothing is projected, for the fits are too far off")
        figure.supxlabel("\n".join(made.assumptions()), fontsize=8, x=0.01, ha="left")
        return figure
    figure = Figure(figsize=(16, 9.5), layout="constrained")
    axes = figure.subplots(2, 3)
    for row, schedule in enumerate(SCHEDULES):
        _over_bandwidth(axes[row, 0], made, schedule=schedule)
        _over_ranks(axes[row, 1], made, schedule=schedule)
    _break_even_lines(axes[0, 2], made)
    _errors(axes[1, 2], made)
    axes[0, 1].legend(fontsize=7 if made.far_off() else 8, ncols=2, loc="upper left")
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


def _iterations(
    axes: Axes, made: Projection, *, ranks: Sequence[int], bandwidths: Sequence[float], schedule: str
) -> dict[str, list[float]]:
    """Draw the iterations of each method, over ranks or bandwidths, as a line in its band; return those lines.

    A method whose fit is off by more than LIMIT has the band alone. One that is off by 1 or more has none to draw: it
    may take any time.
    """
    drawn: dict[str, list[float]] = {}
    for name in made.rates:
        error, look, turn = made.error(name), _line(name), _turn(made, name)
        across, every = list(bandwidths), (int(EVERY * turn), EVERY)
        if len(ranks) > 1:
            across, every = [P * 2 ** (APART * (turn - 0.5)) for P in ranks], (0, 1)
        off_by = f"{name} (off by {percent(error)})"
        if error >= 1:
            axes.plot([], [], ls="", label=f"{off_by}: not drawn")
            continue
        fast, fitted, slow = (
            _milliseconds(made, name, ranks=ranks, bandwidths=bandwidths, schedule=schedule, off=off)
            for off in (FAST, AS_FITTED, SLOW)
        )
        axes.fill_between(
            across, fast, slow, color=look["color"], alpha=0.15, lw=0, label=off_by if error > LIMIT else None
        )
        if error <= LIMIT:
            axes.plot(across, fitted, markevery=every, **look)
        drawn[name] = fitted
    return drawn


def _over_bandwidth(axes: Axes, made: Projection, *, schedule: str) -> None:
    lines = _iterations(axes, made, ranks=[made.ranks], bandwidths=BANDWIDTHS, schedule=schedule)
    marks = []
    for kind, dash in zip(made.rivals(), ("-.", ":"), strict=False):
        at, mark = math.nan, "no break-even, the fit is too far off,"
        if made.refusal(kind) is None:
            band = made.break_even(kind, made.ranks, schedule=schedule)
            at, mark = band.value, f"the best vote {limit(band)}"
            if 0 < at < math.inf:
                mark = f"{made.best(made.ranks, at)} pays up to {limit(band)} Gbit/s"
            low, high = (min(max(end, BANDWIDTHS[0]), BANDWIDTHS[-1]) for end in (band.low, band.high))
            axes.axvspan(low, high, color=GREY, alpha=0.15, lw=0)
        inside = BANDWIDTHS[0] <= at <= BANDWIDTHS[-1]
        marks.append(axes.axvline(at if inside else math.nan, c=GREY, ls=dash, label=f"{mark} against {kind}"))
    axes.legend(handles=marks, fontsize=8, loc="upper right")
    axes.set(xlabel="Gbit/s", ylabel="iteration, ms", title=f"{schedule}, {made.ranks} hosts", xlim=XLIM)
    _log(axes.set_xscale, axes.xaxis)
    axes.set_ylim(0.9 * min(map(min, lines.values())), 1.1 * max(map(max, lines.values())))
    _log(axes.set_yscale, axes.yaxis)


def _over_ranks(axes: Axes, made: Projection, *, schedule: str) -> None:
    lines = _iterations(axes, made, ranks=RANKS, bandwidths=[made.bandwidth], schedule=schedule)
    # The axis ends where a line is far slower than every rival, so that the others can be told apart.
    axes.set(ylabel="iteration, ms", title=f"{schedule}, {made.bandwidth:g} Gbit/s")
    slowest = max((max(line) for name, line in lines.items() if name not in MODELLED_VOTES), default=math.inf)
    top = min(4 * slowest, 1.1 * max(map(max, lines.values())))
    axes.set_ylim(0.9 * min(map(min, lines.values())), top)
    _log(axes.set_yscale, axes.yaxis)
    _ranks_axis(axes)
    axes.set_xlabel("hosts (points a little aside of each other)")


def _milliseconds(
    made: Projection,
    name: str,
    *,
    ranks: Sequence[int],
    bandwidths: Sequence[float],
    schedule: str,
    off: int,
) -> list[float]:
    """Return iterations over the ranks or over the bandwidths, of which the other is one."""
    hidden, compute = made.hidden(schedule), made.model.compute_s
    curves = [made.curve(name, P, off) for P in ranks]
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
    named = {kind: COLOURS[names[0]] for kind, names in made.rivals().items() if made.refusal(kind) is None}
    for kind, colour in named.items():
        for schedule, dash in zip(SCHEDULES, ("-", "--"), strict=True):
            bands = [made.break_even(kind, P, schedule=schedule) for P in RANKS]
            inside = [band.value if 0 < band.value < math.inf else math.nan for band in bands]
            lows, highs = ([min(max(band[end], BANDWIDTHS[0]), OPEN) for band in bands] for end in (1, 2))
            axes.fill_between(RANKS, lows, highs, color=colour, alpha=0.12, lw=0)
            axes.plot(RANKS, inside, ls=dash, marker=".", c=colour, label=f"against {kind}, {schedule}")
    axes.set(ylabel="Gbit/s", title="break-even: below its line the best vote pays", ylim=(0.1, 1000))
    _log(axes.set_yscale, axes.yaxis)
    if named:
        axes.legend(fontsize=8)
    else:
        axes.text(0.5, 0.5, "none is named: the fit is too far off", transform=axes.transAxes, ha="center")
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
    axes.axvline(100 * LIMIT, c=GREY, ls=":", label="beyond: no break-even")
    axes.legend(fontsize=8)
    axes.set(xlabel="relative error, %", title="errors where points were held out: all; median", xlim=(0, None))
