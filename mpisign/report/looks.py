"""How charts look: the colours, markers and lines of methods, the colours of phases, and the axes.

A colour means one thing in all charts and on the page, and is told from each other one by people who are colour-blind
too. Votes have cool colours, their rivals warm ones, and what is neither is grey. A method has the same colour and
marker whatever else ran; its variants, over other libraries or of another rank, differ in line and filling. Of the
parts of a vote, coding is green and what goes over the wire violet.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .notes import CROWDED, WARNING
from .phases import GRADIENT, IMBALANCE, OTHER, RIVAL
from .records import Run
from .statistics import Median

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY = "#6E6E6E"
KINDS = {"vote": "#0072B2", "rival": "#B34700", "ceiling": GREY}  # of any method of that kind
FAMILIES = {  # colour and marker
    "none": (GREY, "o"),
    "mpi": ("#FF8C42", "s"), "gloo": ("#E6B800", "D"), "nccl": ("#7B2100", "p"), "fp16": ("#845A3A", "^"),
    "bf16": ("#4A0000", "v"), "powersgd": ("#BD7B42", "h"),
    "vote-allgather": ("#56B4E9", "P"), "vote-server": ("#009E73", "X"), "vote-alltoall": ("#332288", "*"),
    "vote-reduce": ("#A66BFF", "<"), "vote-hierarchical": ("#0B3B24", ">"),
}  # fmt: skip
UNKNOWN = "8"  # the marker of a method that is in no table, as of a record of another version
VARIANTS = {"": 0, "gloo": 1, "mpi": 1, "nccl": 2, "2": 0, "4": 1}  # by the rest of the name: the number of its look
LINES = ("-", "--", ":")
FILLINGS = ("full", "none", "left")
APART = 0.35  # of the way to the next number, what the methods' points there spread over
EXPOSED = "a vote's exchange"  # overlapped: what is exposed of it
REST = "the rest of the iteration"
PHASES = {
    GRADIENT: "#4D4D4D", "step": "#9D9D9D", REST: "#C0C0C0", IMBALANCE: "#DCDCDC", OTHER: "#1A1A1A",
    "pack": "#A5E6A5", "vote": "#52EF73", "unpack": "#73B573",
    "all-gather": "#7329CE", "all-to-all": "#8C84E6", "all-reduce": "#6B3A7B", "gather": "#420852",
    "broadcast": "#524AB5", EXPOSED: KINDS["vote"], RIVAL: KINDS["rival"],
}  # fmt: skip
LABELS = {GRADIENT: "gradient: data, forward, backward", IMBALANCE: "imbalance: the others wait for the slowest rank"}


def looks(kinds: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return how each method, given with its kind, is drawn: its colour, its marker and the style of its line."""
    styles: dict[str, dict[str, Any]] = {}
    for method, kind in kinds.items():
        # vote-alltoall-gloo has the colour of vote-alltoall, powersgd-4 that of powersgd-2
        family = next((name for name in FAMILIES if f"{method}-".startswith(f"{name}-")), method)
        colour, marker = FAMILIES.get(family, (KINDS[kind], UNKNOWN))
        number = VARIANTS.get(method[len(family) + 1 :], 0)
        styles[method] = {"color": colour, "marker": marker, "linestyle": LINES[number], "fillstyle": FILLINGS[number]}
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
        label.set_color(KINDS[kind])
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
