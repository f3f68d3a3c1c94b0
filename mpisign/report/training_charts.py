"""Charts of trainings: losses, accuracy and rate over epochs, steps and hours, several trainings in one chart."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .looks import label_plainly, looks, plain_numbers
from .notes import CROWDED, WARNING
from .training_log import Row, Training
from .training_table import crowded, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Style = dict[str, Any]
Values = NDArray[np.float64]

MOST = 250  # points of a curve; of more steps, so many blocks of steps in a row are drawn by their means
MARKED = 12  # of the epochs of a curve, about so many get a marker
FAR = 10.0  # the highest loss over the lowest; beyond, their axis is logarithmic
DECADES = 3  # below the lowest of the highest rates, a rate is off the axis
PALEST = 0.45  # of the way to white, the last of several trainings by one method
LINES, MARKERS = ("-", "--", "-.", ":"), "osD^vPX<>p*h8dH"
# What curves are drawn over: the key of a row, and the axis's label.
AXES = {"epochs": ("epoch", "epochs"), "steps": ("step", "steps"), "hours": ("hours", "hours at work")}


def drawings(trainings: Sequence[Training]) -> dict[str, Callable[[], Figure]]:
    """Return what can be drawn, by name: nothing before there is a step."""

    def drawing(over: str) -> Callable[[], Figure]:
        return lambda: curves(trainings, over)

    told = {over for over, (key, _) in AXES.items()
            if any(row[key] is not None for training in trainings for row in training.steps)}  # fmt: skip
    return {f"training-{over}": drawing(over) for over in AXES if over in told}


def styles(trainings: Sequence[Training]) -> list[Style]:
    """Return how each training is drawn: in its method's colour; others of that method are paler, in other lines."""
    from matplotlib.colors import to_hex, to_rgb

    of_methods = looks({training.method: training.kind for training in trainings})
    methods = [training.method for training in trainings]
    markers = [marker for marker in MARKERS if marker not in {style["marker"] for style in of_methods.values()}]
    found = []
    for at, method in enumerate(methods):
        number, style = methods[:at].count(method), dict(of_methods[method])
        if number:
            white = PALEST * number / (methods.count(method) - 1)
            red, green, blue = (white + (1 - white) * part for part in to_rgb(style["color"]))
            style["color"] = to_hex((red, green, blue))
            style["linestyle"], style["marker"] = LINES[number % len(LINES)], markers[number % len(markers)]
        found.append(style)
    return found


def curves(trainings: Sequence[Training], over: str) -> Figure:
    """Draw losses, accuracy and rate of trainings over one of AXES."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    key, label = AXES[over]
    drawn_as = styles(trainings)
    labels = [_label(training) for training in trainings]
    figure = Figure((11, 7.2 + 0.22 * len(trainings)), layout="constrained")
    figure.suptitle(_heading(trainings, over), fontsize=10.5, parse_math=False)
    for axes, (name, draw) in zip(figure.subplots(2, 2, sharex=True).flat, PANELS.items(), strict=True):
        axes.set_title(name, fontsize=10.5)
        for training, style in zip(trainings, drawn_as, strict=True):
            draw(axes, training, key, style)
        axes.grid(color="#e4e4e4")
        axes.set_axisbelow(True)
        if not axes.has_data():
            axes.text(0.5, 0.5, "no epoch is finished", transform=axes.transAxes, ha="center", color="#6e6e6e")
    for axes in figure.axes[-2:]:
        axes.set_xlabel(label)
        axes.set_xlim(left=0)
        axes.locator_params(axis="x", nbins=7)
    for axes in figure.axes[:2]:
        _spread(axes)
    block = max(map(_block, trainings))
    if block > 1:
        figure.axes[0].set_ylabel(f"means of up to {block} steps, and their range", fontsize=9)
    _bound_rates(figure.axes[-1], trainings)
    handles = [Line2D([], [], markersize=5, **style) for style in drawn_as]
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=1 + (len(labels) > 6), frameon=False,
                           fontsize=9)  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _label(training: Training) -> str:
    config = training.config
    optimizer = "" if training.kind == "vote" else f" {config.get('optimizer', '')}".rstrip()
    guilty = config.get("adversaries", 0)
    traitors = f", {guilty} of them {'a traitor' if guilty == 1 else 'traitors'}" if guilty else ""
    ranks = " then ".join(map(str, training.ranks))
    return f"{training.method}{optimizer}, {ranks} rank{'s' * (training.ranks != [1])}{traitors}: {training.name}"


def _heading(trainings: Sequence[Training], over: str) -> str:
    warned = over == "hours" and any(map(crowded, trainings))
    return title(trainings) + (f"\n{WARNING}{CROWDED}" if warned else "")


def _columns(rows: Sequence[Row], *names: str) -> list[Values]:
    """Return values of rows as arrays, NaN where they are not known, of the rows whose first one is known."""
    known = [row for row in rows if row[names[0]] is not None]
    return [np.array([row[name] for row in known], float) for name in names]


def _block(training: Training) -> int:
    """Return of how many steps a point of the training's loss is the mean."""
    return math.ceil(len(training.steps) / MOST)


def _training_loss(axes: Axes, training: Training, key: str, style: Style) -> None:
    """Draw the loss of each step; of many, the means of blocks, and from their lowest to their highest a band."""
    x, loss = _columns(training.steps, key, "loss")
    if not len(x):
        return
    size = _block(training)
    parts = [slice(begin, begin + size) for begin in range(0, len(x), size)]
    places, means = ([float(values[part].mean()) for part in parts] for values in (x, loss))
    axes.plot(places, means, color=style["color"], linestyle=style["linestyle"], linewidth=1.2)
    if size > 1:
        low, high = ([float(of(loss[part])) for part in parts] for of in (np.min, np.max))
        axes.fill_between(places, low, high, color=style["color"], alpha=0.1, linewidth=0)


def _by_epoch(axes: Axes, training: Training, key: str, name: str, style: Style, scale: float = 1.0) -> None:
    x, values = _columns(training.epochs, key, name)
    usual: Style = {"markersize": 4.5, "linewidth": 1.3, "markevery": math.ceil(max(len(x), 1) / MARKED)}
    axes.plot(x, scale * values, **usual | style)


def _validation_loss(axes: Axes, training: Training, key: str, style: Style) -> None:
    if training.epochs:
        _by_epoch(axes, training, key, "validation_loss", style)


def _accuracy(axes: Axes, training: Training, key: str, style: Style) -> None:
    if training.epochs:
        _by_epoch(axes, training, key, "top1", style, 100)
        if any(row["train_top1"] is not None for row in training.epochs):
            thin = {"marker": "", "linewidth": 0.7, "alpha": 0.8}
            _by_epoch(axes, training, key, "train_top1", style | thin, 100)
            axes.set_title("Top-1 accuracy, % (thin, without marks: in training)", fontsize=10.5)


def _rate(axes: Axes, training: Training, key: str, style: Style) -> None:
    x, rate = _columns(training.steps, key, "lr")
    if len(x):
        seen = np.unique(np.r_[0 : len(x) : math.ceil(len(x) / (4 * MOST)), len(x) - 1])
        axes.plot(x[seen], rate[seen], color=style["color"], linestyle=style["linestyle"], linewidth=1.3)


PANELS: Mapping[str, Callable[[Axes, Training, str, Style], None]] = {
    "Loss in training": _training_loss,
    "Loss in validation": _validation_loss,
    "Top-1 accuracy, %": _accuracy,
    "Learning rate": _rate,
}


def _spread(axes: Axes) -> None:
    """Let the axis of losses be logarithmic if they lie far apart, as where a training diverges."""
    drawn = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines] or [np.empty(0)])
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) and 0 < FAR * drawn.min() < drawn.max():
        axes.set_yscale("log")
        label_plainly(axes.yaxis)


def _bound_rates(axes: Axes, trainings: Sequence[Training]) -> None:
    """Let the axis of rates be logarithmic, as those of votes and rivals lie far apart, but not down to 0."""
    highest = [max((row["lr"] or 0.0 for row in training.steps), default=0.0) for training in trainings]
    positive = [rate for rate in highest if rate > 0]
    if positive:
        axes.set_yscale("log")
        lowest = axes.get_ylim()[0]
        axes.set_ylim(bottom=max(lowest, min(positive) / 10**DECADES))
        plain_numbers(axes.yaxis, (1,))
