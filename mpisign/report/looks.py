"""How charts look: the colours, markers and lines of methods, the colours of phases, and the axes.

Votes are drawn in cool colours and their rivals in warm ones, told apart by people who are colour-blind too. Each
method has a marker of its own, and variants of a method differ in the style of the line.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .notes import CROWDED, WARNING
from .phases import IMBALANCE, OTHER
from .records import Run
from .statistics import Median

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COOL = ("#0072B2", "#009E73", "#56B4E9", "#332288", "#4234D2")  # after Okabe and Ito, and Tol
WARM = ("#D55E00", "#E69F00", "#882255", "#E6CF5D", "#661100", "#3E1A13")
GREY = "#6e6e6e"
MARKERS = "osD^vPX<>p*h"
STYLES = ("-", "--", ":", "-.")
RIVAL = "a rival's whole exchange"  # not told apart
PHASES = {
    "compute": "#4d4d4d", "step": "#a7a7a7", IMBALANCE: "#dcdcdc",
    "pack": "#F0C000", "vote": "#451A3F", "unpack": "#CD0A34",
    "all-gather": "#0072B2", "all-to-all": "#56B4E9", "all-reduce": "#009E73", "gather": "#332288",
    "broadcast": "#09576C", OTHER: "#1a1a1a", RIVAL: WARM[0],
}  # fmt: skip
LABELS = {IMBALANCE: "imbalance: the others wait for the slowest rank"}


def looks(kinds: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return how each method, given with its kind, is drawn: its colour, marker and line style."""
    styles: dict[str, dict[str, Any]] = {}
    families: dict[str, dict[str, int]] = {"vote": {}, "rival": {}, "ceiling": {}}  # how many variants each name has
    for number, (method, kind) in enumerate(kinds.items()):
        # vote-alltoall-gloo has the colour of vote-alltoall, powersgd-4 that of powersgd-2
        name = method.split("-")[1 if kind == "vote" else 0]
        family, colours = families[kind], {"vote": COOL, "rival": WARM, "ceiling": (GREY,)}[kind]
        family[name] = family.get(name, 0) + 1
        styles[method] = {
            "color": colours[list(family).index(name) % len(colours)],
            "marker": MARKERS[number % len(MARKERS)],
            "linestyle": STYLES[(family[name] - 1) % len(STYLES)],
        }
    return styles


def empty_figure(run: Run, height: float, *, counts: Sequence[int] = ()) -> Figure:
    """Return an empty figure with the line that says what was measured, and the warning where ranks share cores."""
    from matplotlib.figure import Figure

    config, machine = run.head["config"], run.head["machine"]
    what = "bare vectors" if config["sizes"] else (
        f"{config['model']}, batch {config['batch_size']} a rank, {config['image_size']} x {config['image_size']}, "
        f"{config['schedule']}"
    )  # fmt: skip
    ranks = "1 rank" if machine["ranks"] == 1 else f"{', '.join(map(str, counts or [machine['ranks']]))} ranks"
    title = f"{what}: {ranks} on {machine['device']}, {machine['cores']} cores, {machine['nodes']} node(s)"
    figure = Figure((11, height), layout="constrained")
    if machine["ranks_per_core"] > 1:
        title += f"\n{WARNING}{CROWDED}"
    figure.suptitle(title, fontsize=10.5, parse_math=False)
    return figure


def marked(method: str, wrong: Collection[str]) -> str:
    """Return a method's name, marked if it is one of those that had a wrong result."""
    return f"{method} (wrong)" if method in wrong else method


def name_rows(axes: Axes, kinds: Mapping[str, str], *, wrong: Collection[str]) -> None:
    """Write the methods, given with their kinds, beside their rows, the first on top, each in its kind's colour."""
    axes.set_yticks(range(len(kinds)), [marked(method, wrong) for method in kinds])
    axes.set_ylim(len(kinds) - 0.45, -0.55)
    for label, kind in zip(axes.get_yticklabels(), kinds.values(), strict=True):
        label.set_color({"vote": COOL[0], "rival": WARM[0], "ceiling": GREY}[kind])
    for part in axes.figure.axes:
        part.grid(axis="x", color="#e4e4e4")
        part.set_axisbelow(True)
        part.tick_params(axis="y", length=0)


def label_plainly(axis: Any) -> None:
    """Label a logarithmic axis with plain numbers, the fewer the longer it is."""
    low, high = axis.get_view_interval()
    plain_numbers(axis, (1, 2, 5) if high / low < 100 else (1,))


def plain_numbers(axis: Any, digits: Sequence[int]) -> None:
    """Label a logarithmic axis with plain numbers, 0.1, 20, 500: those that begin with one of the digits."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=digits))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def error_bar(middle: Median) -> Any:
    """Return the lengths of an error bar, below and above, shape (2, 1)."""
    return np.array([[middle.median - middle.low], [middle.high - middle.median]])
