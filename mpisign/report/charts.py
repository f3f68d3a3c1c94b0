"""Charts of records: where an iteration's time goes, every sample, and how it scales. They need matplotlib.

Votes are drawn in cool colours, their rivals in warm ones, told apart by people who are colour-blind too; each method
also has a marker of its own, and variants of one differ in the line's style.
"""

from __future__ import annotations

import importlib.util
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import records, table
from .records import Run
from .rows import Row, breakdown, comm_samples, iteration_samples, rows
from .statistics import Median, median_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = dict[str, dict[int, Median]]  # by method, and by ranks or bytes: seconds

MAY_DIFFER = ("ranks", "nodes", "cores")  # of records.FACTS, between the records of a chart over ranks
COOL = ("#0072B2", "#009E73", "#56B4E9", "#332288", "#4234D2")  # after Okabe and Ito, and Tol
WARM = ("#D55E00", "#E69F00", "#882255", "#E6CF5D", "#661100", "#3E1A13")
GREY = "#6e6e6e"
MARKERS = "osD^vPX<>p*h"
STYLES = ("-", "--", ":", "-.")
RIVAL = "a rival's whole exchange"  # not told apart
PHASES = {
    "compute": "#4d4d4d", "step": "#a7a7a7", "wait": "#dcdcdc",
    "pack": "#F0C000", "vote": "#451A3F", "unpack": "#CD0A34",
    "all-gather": "#0072B2", "all-to-all": "#56B4E9", "all-reduce": "#009E73", "gather": "#332288",
    "broadcast": "#09576C", "other": "#1a1a1a", RIVAL: WARM[0],
}  # fmt: skip
LABELS = {"wait": "wait for the slowest rank"}
FAR = 2.5  # times the highest median: samples beyond are told at the edge of the axis
APART = 0.35  # of the way to the next number, what the methods' points there spread over
MANY = 5000  # dots; more become a picture inside the drawing


def missing() -> str | None:
    """Say why no chart can be drawn here, or None."""
    for package in ("matplotlib", "jinja2"):
        if importlib.util.find_spec(package) is None:
            return f"charts and pages need {package}: pip install 'mpisign[plots]'"
    return None


def misfit(runs: Sequence[Run]) -> str | None:
    """Say why these records cannot be drawn together, or None: they may differ in the number of ranks alone."""
    for run in runs[1:]:
        found = records.differences(runs[0], run)
        others = [text for text in found if text.split(":")[0] not in MAY_DIFFER]
        if others:
            return "they differ in " + "; ".join(others)
    counts = [run.head["machine"]["ranks"] for run in runs]
    again = [count for count in counts if counts.count(count) > 1]
    return f"more than one of them has {again[0]} ranks" if again else None


def drawings(run: Run) -> dict[str, Callable[[], Figure]]:
    """Return what can be drawn of a record, by name."""
    if run.head["config"]["sizes"]:
        return {"sizes": lambda: sizes(run)}
    return {"breakdown": lambda: stacked(run), "distribution": lambda: distribution(run)}


def pictures(draw: Callable[[], Figure], suffixes: Iterable[str] = (".svg", ".png")) -> dict[str, bytes]:
    """Return what is drawn, by suffix: the same figure, the same bytes."""
    import matplotlib

    drawn = {}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # not the user's own settings
        matplotlib.use("Agg")
        matplotlib.rcParams["svg.hashsalt"] = "mpisign"
        figure = draw()
        for suffix in suffixes:
            picture, told = io.BytesIO(), {".svg": "Date", ".png": "Software"}[suffix]
            figure.savefig(picture, format=suffix[1:], metadata={told: None}, dpi=120)
            drawn[suffix] = picture.getvalue()
    return drawn


def write(stem: Path, draw: Callable[[], Figure]) -> list[Path]:
    """Write what is drawn to `stem`.svg and .png, both or none; return their paths."""
    drawn = {Path(f"{stem}{suffix}"): picture for suffix, picture in pictures(draw).items()}
    stem.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{stem.name}.", dir=stem.parent) as folder:
        for path, picture in drawn.items():
            (Path(folder) / path.name).write_bytes(picture)
        for path in drawn:
            os.replace(Path(folder) / path.name, path)
    return list(drawn)


def looks(kinds: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return how each method, given with its kind, is drawn: its colour, marker and line style."""
    found: dict[str, dict[str, Any]] = {}
    families: dict[str, dict[str, int]] = {"vote": {}, "rival": {}, "ceiling": {}}  # how many variants each name has
    for number, (method, kind) in enumerate(kinds.items()):
        # vote-alltoall-gloo has the colour of vote-alltoall, powersgd-4 that of powersgd-2
        name = method.split("-")[1 if kind == "vote" else 0]
        family, colours = families[kind], {"vote": COOL, "rival": WARM, "ceiling": (GREY,)}[kind]
        family[name] = family.get(name, 0) + 1
        found[method] = {
            "color": colours[list(family).index(name) % len(colours)],
            "marker": MARKERS[number % len(MARKERS)],
            "linestyle": STYLES[(family[name] - 1) % len(STYLES)],
        }
    return found


def stacked(run: Run) -> Figure:
    """Draw an iteration of each method as a stacked bar, and the exchange alone beside it."""
    methods = run.head["methods"]
    figure = _figure(run, 1.9 + 0.34 * len(methods))
    whole, alone = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    names, found = breakdown(run)
    names.append(RIVAL)
    for row in found:
        row[RIVAL] = row.pop("other") if run.kinds[row["method"]] == "rival" else 0.0
    if run.head["config"]["schedule"] == "overlap":
        _exposed(whole, rows(run), run.kinds)
    else:
        order = ["compute", "step", "wait", *(name for name in names if name not in ("compute", "step", "wait"))]
        _stack(whole, found, order)
        whole.set(title="Iteration", xlabel="ms (mean over ranks, median over iterations)")
    _stack(alone, found, [name for name in names if name not in ("compute", "step", "wait")])
    alone.set(title="The exchange alone", xlabel="ms")
    _name_rows(whole, methods, run.kinds)
    handles = {
        label: handle
        for axes in (whole, alone)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure


def _stack(axes: Axes, found: list[Row], names: Sequence[str]) -> None:
    left = np.zeros(len(found))
    for name in names:
        widths = np.array([1e3 * max(row.get(name, 0.0), 0.0) for row in found])
        if widths.any():
            axes.barh(range(len(found)), widths, left=left, height=0.72, color=PHASES.get(name, GREY),
                      edgecolor="white", linewidth=0.4, label=LABELS.get(name, name))  # fmt: skip
        left += widths


def _exposed(axes: Axes, found: list[Row], kinds: Mapping[str, str]) -> None:
    """Draw overlapped iterations: what is exposed of the exchange, behind the rest, and the iteration's interval."""
    parts = {"compute": (PHASES["step"], "the rest of the iteration"), "vote": (COOL[0], "exposed, of a vote"),
             "rival": (WARM[0], "exposed, of a rival")}  # fmt: skip
    for place, row in enumerate(found):
        iteration = Median(*(1e3 * row[f"iteration{end}_s"] for end in ("", "_low", "_high")))
        exposed = 1e3 * max(row["exposed_s"] or 0.0, 0.0)
        rest = iteration.median - exposed
        axes.barh(place, rest, height=0.72, color=parts["compute"][0], edgecolor="white", linewidth=0.4)
        if exposed:
            axes.barh(place, exposed, left=rest, height=0.72, color=parts[kinds[row["method"]]][0])
        axes.errorbar(iteration.median, place, xerr=_either_side(iteration), color="black", capsize=3, linewidth=1)
    for colour, label in parts.values():
        axes.barh(0, 0, color=colour, label=label)
    axes.set(title="Overlapped iteration, and its 95 % interval", xlabel="ms (median over iterations)")


def distribution(run: Run) -> Figure:
    """Draw every sample of each method, with its quartiles, its median and the median's interval."""
    methods = run.head["methods"]
    figure = _figure(run, 1.7 + 0.44 * len(methods))
    left, right = figure.subplots(1, 2, sharey=True)
    style = looks({method: run.kinds[method] for method in methods})
    _strips(left, style, iteration_samples(run))
    left.set(title="Iteration", xlabel="ms (the axis need not begin at 0)")
    right.set(title="The exchange alone", xlabel="ms, logarithmic", xscale="log")
    sending = {name: samples for name, samples in comm_samples(run).items() if run.kinds[name] != "ceiling"}
    _strips(right, style, sending)
    _plain(right.xaxis)
    for ceiling in (name for name in methods if run.kinds[name] == "ceiling"):
        right.text(0.5, methods.index(ceiling), "sends nothing", transform=right.get_yaxis_transform(),
                   color=GREY, ha="center", va="center", fontsize=9)  # fmt: skip
    _name_rows(left, methods, run.kinds)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure


def _strips(axes: Axes, style: dict[str, dict[str, Any]], samples: dict[str, Any]) -> None:
    """Draw each method's samples in a row; those far beyond all medians at the right edge, with their numbers."""
    methods, spread = list(style), np.random.default_rng(0)
    crowd = sum(map(len, samples.values())) > MANY
    middles = {method: median_interval(1e3 * samples[method]) for method in methods if method in samples}
    edge = FAR * max((middle.high for middle in middles.values()), default=0.0)
    for method, middle in middles.items():
        place, values, colour = methods.index(method), 1e3 * samples[method], style[method]["color"]
        near, far = values[values <= edge], values[values > edge]
        low, high = np.quantile(values, (0.25, 0.75))
        axes.barh(place - 0.1, high - low, left=low, height=0.5, color=colour, alpha=0.18)
        heights = place - 0.1 + spread.uniform(-0.22, 0.22, len(near))
        axes.plot(near, heights, linestyle="", marker="o", markersize=3.4, alpha=0.7, markeredgewidth=0, color=colour,
                  rasterized=crowd)  # fmt: skip
        axes.errorbar(middle.median, place + 0.29, xerr=_either_side(middle), fmt="|", color="black", markersize=9,
                      markeredgewidth=1.6, elinewidth=1.2, capsize=2.5)  # fmt: skip
        if len(far):
            first, last = (table.milliseconds(value / 1e3) for value in (far.min(), far.max()))
            told = first if len(far) == 1 else f"{len(far)} from {first} to {last}"
            axes.text(0.99, place + 0.29, f"{told} \N{BLACK RIGHT-POINTING TRIANGLE}", ha="right", va="center",
                      fontsize=8, color=colour, transform=axes.get_yaxis_transform())  # fmt: skip
    axes.plot([], [], "|-", color="black", markersize=9, label="median and its 95 % interval")
    axes.plot([], [], "s", color="#bbbbbb", markersize=10, label="quartiles")
    axes.plot([], [], "o", color=COOL[0], markersize=4, label="an iteration of a vote")
    axes.plot([], [], "o", color=WARM[0], markersize=4, label="an iteration of a rival")
    axes.plot([], [], ">", color=GREY, markersize=5, label="beyond the axis")


def sizes(run: Run) -> Figure:
    """Draw the exchange's time over the size of the vector."""
    points: Points = {method: {} for method in run.head["methods"]}
    for row in rows(run):
        points[row["method"]][row["bytes"]] = Median(row["comm_s"], row["comm_low_s"], row["comm_high_s"])
    figure = _figure(run, 6.2)
    axes = figure.subplots()
    _curves(axes, points, run.kinds)
    ticks = run.head["config"]["sizes"]
    axes.set(
        xlabel="the vector as fp32, bytes (points a little aside of each other)",
        ylabel="exchange, ms (median and its 95 % interval)",
    )
    axes.set_xticks(ticks, map(table.size_text, ticks), fontsize=9)
    axes.set_xticks([], minor=True)
    figure.legend(loc="outside right center", frameon=False)
    return figure


def scaling(runs: Sequence[Run]) -> Figure:
    """Draw iteration and exchange over the number of ranks; of sweeps, the exchange of the first and last size.

    Raises:
        ValueError: the records don't fit together.

    """
    if reason := misfit(runs):
        raise ValueError(f"these records cannot be drawn together: {reason}")
    runs = sorted(runs, key=lambda run: int(run.head["machine"]["ranks"]))
    asked = runs[0].head["config"]["sizes"]
    panels: dict[str, Callable[[Run], dict[str, Any]]] = (
        {f"Exchange of {table.size_text(size)}": lambda run, size=size: comm_samples(run, size)  # type: ignore[misc]
         for size in dict.fromkeys((asked[0], asked[-1]))}
        if asked else {"Iteration": iteration_samples, "The exchange alone": comm_samples}
    )  # fmt: skip
    methods = list(dict.fromkeys(method for run in runs for method in run.head["methods"]))
    kinds = {method: run.kinds[method] for run in runs for method in run.head["methods"]}
    counts = [run.head["machine"]["ranks"] for run in runs]
    figure = _figure(runs[-1], 5.6, counts)
    for axes, (name, samples_of) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        points: Points = {method: {} for method in methods}
        for run, count in zip(runs, counts, strict=True):
            for method, samples in samples_of(run).items():
                points[method][count] = median_interval(samples)
        _curves(axes, points, kinds)
        axes.set(
            title=name, xlabel="ranks (points a little aside of each other)", ylabel="ms (median and its 95 % interval)"
        )
        axes.set_xticks(counts, map(str, counts))
        axes.set_xticks([], minor=True)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    return figure


def _curves(axes: Axes, points: Points, kinds: Mapping[str, str]) -> None:
    """Draw each method's medians with their intervals, a little to the side of each other's."""
    style, places = (
        looks({method: kinds[method] for method in points}),
        sorted({place for found in points.values() for place in found}),
    )
    step = min((after / before for before, after in pairwise(places)), default=2.0)
    for number, (method, found) in enumerate(points.items()):
        if found:
            middles, aside = list(found.values()), step ** (APART * (number / len(points) - 0.5))
            axes.errorbar(
                [place * aside for place in found], [1e3 * middle.median for middle in middles],
                yerr=np.hstack([1e3 * _either_side(middle) for middle in middles]), label=method, markersize=5,
                linewidth=1.3, elinewidth=0.9, capsize=2.5, **style[method],
            )  # fmt: skip
    axes.set(xscale="log", yscale="log")
    axes.grid(color="#e4e4e4")
    axes.set_axisbelow(True)
    _plain(axes.yaxis)


def _figure(run: Run, height: float, counts: Sequence[int] = ()) -> Figure:
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
        title += f"\nWARNING: {table.CROWDED}"
    figure.suptitle(title, fontsize=10.5, parse_math=False)
    return figure


def _name_rows(axes: Axes, methods: Sequence[str], kinds: Mapping[str, str]) -> None:
    """Write the methods beside their rows, the first on top, in their family's colour."""
    axes.set_yticks(range(len(methods)), methods)
    axes.set_ylim(len(methods) - 0.45, -0.55)
    for label, method in zip(axes.get_yticklabels(), methods, strict=True):
        label.set_color({"vote": COOL[0], "rival": WARM[0], "ceiling": GREY}[kinds[method]])
    for part in axes.figure.axes:
        part.grid(axis="x", color="#e4e4e4")
        part.set_axisbelow(True)
        part.tick_params(axis="y", length=0)


def _plain(axis: Any) -> None:
    """Write a logarithmic axis' numbers as people do, the fewer the longer it is."""
    low, high = axis.get_view_interval()
    plain_numbers(axis, (1, 2, 5) if high / low < 100 else (1,))


def plain_numbers(axis: Any, digits: Sequence[int]) -> None:
    """Write a logarithmic axis' numbers as people do, 0.1, 20, 500: those that begin with one of the digits."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=digits))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _either_side(middle: Median) -> Any:
    """Return what an error bar takes: how far the interval goes below and above, shape (2, 1)."""
    return np.array([[middle.median - middle.low], [middle.high - middle.median]])
