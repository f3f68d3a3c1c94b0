"""Charts of records: where an iteration's time goes, every sample, and how it scales. They need matplotlib."""

from __future__ import annotations

import importlib.util
import io
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import records, text
from .looks import (
    APART,
    EXPOSED,
    GREY,
    KINDS,
    LABELS,
    PHASES,
    REST,
    empty_figure,
    error_bar,
    label_plainly,
    looks,
    marked,
    name_rows,
)
from .phases import GRADIENT, IMBALANCE, OTHER, RIVAL, Breakdown, Phases
from .records import Run
from .rows import Row
from .samples import Measured, Samples
from .statistics import Median, median_interval
from .summary import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = dict[str, dict[int, Median]]  # by method, and by ranks or bytes: seconds

# Of records.FACTS, between the records of a chart over ranks: their number, and what follows from it.
MAY_DIFFER = ("ranks", "nodes", "cores", "bound", "torch_threads", "gpus", "transport", "gloo")
FAR = 2.5  # times the highest median: samples beyond are written at the edge of the axis
PARTS_AXIS = "ms; a bar ends at the median, its parts are means of\nthe middle half of the iterations, scaled to it"
MANY = 5000  # dots; more become a picture inside the drawing


def missing() -> str | None:
    """Say why no chart can be drawn here, or None."""
    for package in ("matplotlib", "jinja2"):
        if importlib.util.find_spec(package) is None:
            return f"charts and pages need {package}: pip install 'mpisign[plots]'"
    return None


def misfit(runs: Sequence[Run]) -> str | None:
    """Say why these records cannot be drawn together, or None: they may differ in the number of ranks alone."""
    others = [fact for fact in records.differences(*runs) if fact.split(":")[0] not in MAY_DIFFER]
    if others:
        return "they differ in " + "; ".join(others)
    counts = [run.head["machine"]["ranks"] for run in runs]
    again = [count for count in counts if counts.count(count) > 1]
    return f"more than one of them has {again[0]} ranks" if again else None


def drawings(summary: Summary) -> dict[str, Callable[[], Figure]]:
    """Return what can be drawn of a run, by name."""
    if summary.breakdown is None:
        return {"sizes": lambda: sizes(summary)}
    breakdown = summary.breakdown
    return {"breakdown": lambda: stacked(summary, breakdown), "distribution": lambda: distribution(summary)}


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
            picture, changing = io.BytesIO(), {".svg": "Date", ".png": "Software"}[suffix]
            figure.savefig(picture, format=suffix[1:], metadata={changing: None}, dpi=120)
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


def stacked(summary: Summary, breakdown: Breakdown) -> Figure:
    """Draw an iteration of each method as a stacked bar, and the exchange alone beside it."""
    kinds = _kinds(summary.run)
    figure = empty_figure(summary.run, 1.9 + 0.34 * len(kinds))
    whole, alone = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    if summary.overlaps:
        _exposed(whole, summary.rows, kinds=kinds)
    else:
        _stack(whole, breakdown.iteration)
        whole.set(title="Iteration", xlabel=PARTS_AXIS)
    _stack(alone, breakdown.exchange)
    alone.set(title="The exchange alone", xlabel=PARTS_AXIS)
    name_rows(whole, kinds, wrong=_wrong(summary))
    handles = {
        label: handle
        for axes in (whole, alone)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure


def _kinds(run: Run) -> dict[str, str]:
    """Return the kind of each method, in the order asked for."""
    return {method: run.kinds[method] for method in run.head["methods"]}


def _wrong(*summaries: Summary) -> set[str]:
    """Return the methods that had a wrong result in any of these runs, at any size."""
    every = [measured.wrong for summary in summaries for measured in summary.measured.values()]
    differing = (summary.run.head["methods"] for summary in summaries if summary.run.replicas_differ)
    return {method for wrong in every for method, count in wrong.items() if count}.union(*differing)


def _stack(axes: Axes, phases: Phases) -> None:
    """Draw the parts of each method, end to end: what is no exchange first."""
    first, last = (GRADIENT, "step"), (OTHER, RIVAL, IMBALANCE)
    spans = (name for name in phases.names if name not in (*first, *last))
    left = np.zeros(len(phases.rows))
    for name in (*first, *spans, *last):
        widths = np.array([1e3 * row.get(name, 0.0) for row in phases.rows])
        if widths.any():
            axes.barh(range(len(widths)), widths, left=left, height=0.72, color=PHASES.get(name, GREY),
                      edgecolor="white", linewidth=0.4, label=LABELS.get(name, name))  # fmt: skip
        left += widths


def _exposed(axes: Axes, rows: list[Row], *, kinds: Mapping[str, str]) -> None:
    """Draw overlapped iterations: the exposed part of the exchange, after the rest, and the iteration's interval."""
    exchanges = {"vote": EXPOSED, "rival": RIVAL}
    for place, row in enumerate(rows):
        iteration = Median(*(1e3 * row[f"iteration{end}_s"] for end in ("", "_low", "_high")))
        exposed = 1e3 * max(row["exposed_s"] or 0.0, 0.0)
        rest = iteration.median - exposed
        axes.barh(place, rest, height=0.72, color=PHASES[REST], edgecolor="white", linewidth=0.4)
        if exposed:
            axes.barh(place, exposed, left=rest, height=0.72, color=PHASES[exchanges[kinds[row["method"]]]])
        axes.errorbar(iteration.median, place, xerr=error_bar(iteration), color="black", capsize=3, linewidth=1)
    for label in (REST, EXPOSED, RIVAL):
        axes.barh(0, 0, color=PHASES[label], label=label)
    title = "Overlapped iteration, and what is exposed of the exchange"
    axes.set(title=title, xlabel="ms (median and its 95 % interval)")


def distribution(summary: Summary) -> Figure:
    """Draw every sample of each method, with its quartiles, its median and the median's interval."""
    kinds, samples = _kinds(summary.run), summary.measured[None]
    methods = list(kinds)
    figure = empty_figure(summary.run, 1.7 + 0.44 * len(methods))
    left, right = figure.subplots(1, 2, sharey=True)
    _strips(left, samples.iteration, kinds=kinds)
    left.set(title="Iteration", xlabel="ms (the axis need not begin at 0)")
    right.set(title="The exchange alone", xlabel="ms, logarithmic", xscale="log")
    _strips(right, {name: comm for name, comm in samples.comm.items() if kinds.get(name) != "ceiling"}, kinds=kinds)
    label_plainly(right.xaxis)
    for ceiling in (name for name in methods if kinds[name] == "ceiling"):
        right.text(0.5, methods.index(ceiling), "sends nothing", transform=right.get_yaxis_transform(),
                   color=GREY, ha="center", va="center", fontsize=9)  # fmt: skip
    name_rows(left, kinds, wrong=_wrong(summary))
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure


def _strips(axes: Axes, samples: Samples, *, kinds: Mapping[str, str]) -> None:
    """Draw each method's samples in a row; those far beyond all medians as numbers at the right edge."""
    methods, spread = list(kinds), np.random.default_rng(0)
    crowd = sum(map(len, samples.values())) > MANY
    middles = {method: median_interval(1e3 * samples[method]) for method in methods if method in samples}
    edge = FAR * max((middle.high for middle in middles.values()), default=0.0)
    for method, middle in middles.items():
        place, values, colour = methods.index(method), 1e3 * samples[method], KINDS[kinds[method]]
        near, far = values[values <= edge], values[values > edge]
        low, high = np.quantile(values, (0.25, 0.75))
        axes.barh(place - 0.1, high - low, left=low, height=0.5, color=colour, alpha=0.18)
        heights = place - 0.1 + spread.uniform(-0.22, 0.22, len(near))
        axes.plot(near, heights, linestyle="", marker="o", markersize=3.4, alpha=0.7, markeredgewidth=0, color=colour,
                  rasterized=crowd)  # fmt: skip
        axes.errorbar(middle.median, place + 0.29, xerr=error_bar(middle), fmt="|", color="black", markersize=9,
                      markeredgewidth=1.6, elinewidth=1.2, capsize=2.5)  # fmt: skip
        if len(far):
            first, last = (text.milliseconds(value / 1e3) for value in (far.min(), far.max()))
            beyond = first if len(far) == 1 else f"{len(far)} from {first} to {last}"
            axes.text(0.99, place + 0.29, f"{beyond} \N{BLACK RIGHT-POINTING TRIANGLE}", ha="right", va="center",
                      fontsize=8, color=colour, transform=axes.get_yaxis_transform())  # fmt: skip
    axes.plot([], [], "|-", color="black", markersize=9, label="median and its 95 % interval")
    axes.plot([], [], "s", color="#bbbbbb", markersize=10, label="quartiles")
    axes.plot([], [], "o", color=KINDS["vote"], markersize=4, label="a sample of a vote")
    axes.plot([], [], "o", color=KINDS["rival"], markersize=4, label="a sample of a rival")
    axes.plot([], [], ">", color=GREY, markersize=5, label="beyond the axis")


def sizes(summary: Summary) -> Figure:
    """Draw the exchange's time over the size of the vector, and below it the fastest rival / the fastest vote.

    A ceiling sends nothing: its times would squeeze all others, and stand as a line of text instead.
    """
    kinds = _kinds(summary.run)
    points: Points = {method: {} for method, kind in kinds.items() if kind != "ceiling"}
    for row in summary.rows:
        if row["method"] in points:
            points[row["method"]][row["bytes"]] = Median(row["comm_s"], row["comm_low_s"], row["comm_high_s"])
    compared = any(summary.answers.values())
    figure = empty_figure(summary.run, 8.6 if compared else 6.2)
    panels = figure.subplots(1 + compared, 1, sharex=True, squeeze=False, height_ratios=(3, 2)[: 1 + compared])[:, 0]
    _curves(panels[0], points, style=looks(kinds), wrong=_wrong(summary))
    panels[0].set(ylabel="exchange, ms (median and its 95 % interval)")
    if compared:
        _crossover(panels[1], summary.answers)
    ticks = summary.run.head["config"]["sizes"]
    panels[-1].set(xlabel="the vector as fp32, bytes (points of methods a little aside of each other)")
    panels[-1].set_xticks(ticks, map(text.size, ticks), fontsize=9)
    panels[-1].set_xticks([], minor=True)
    for ceiling in (method for method in kinds if method not in points):
        least, most = (text.milliseconds(pick(row["comm_s"] for row in summary.rows if row["method"] == ceiling))
                       for pick in (min, max))  # fmt: skip
        panels[0].set_title(f"off the axis: {ceiling}, which sends nothing, {least} to {most} ms", fontsize=9,
                            color=GREY, loc="left")  # fmt: skip
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    return figure


def _crossover(axes: Axes, answers: Mapping[int | None, Row | None]) -> None:
    """Draw the fastest rival's time over the fastest vote's at each size, in the colour of who is faster."""
    vote, rival = KINDS["vote"], KINDS["rival"]
    colours = {"faster": vote, "slower": rival}
    labels = {vote: "the fastest vote is faster", rival: "the fastest rival is faster", GREY: "no verdict"}
    for size, answer in answers.items():
        if size and answer:
            ratio = Median(answer["speedup"], answer["speedup_low"], answer["speedup_high"])
            colour = colours.get(answer["verdict"], GREY)
            axes.errorbar(size, ratio.median, yerr=error_bar(ratio), fmt="o", color=colour, markersize=5,
                          elinewidth=1.2, capsize=3, label=labels.pop(colour, None))  # fmt: skip
    axes.axhline(1, color="black", linewidth=0.9)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=9)
    axes.set(yscale="log", ylabel="fastest rival / fastest vote\n(95 % for all sizes together)")
    axes.grid(color="#e4e4e4")
    axes.set_axisbelow(True)
    label_plainly(axes.yaxis)


def scaling(summaries: Sequence[Summary]) -> Figure:
    """Draw iteration and exchange over the number of ranks; of sweeps, the exchange of the first and last size.

    Raises:
        ValueError: the records don't fit together.

    """
    if reason := misfit([summary.run for summary in summaries]):
        raise ValueError(f"these records cannot be drawn together: {reason}")
    summaries = sorted(summaries, key=lambda summary: int(summary.run.head["machine"]["ranks"]))
    runs = [summary.run for summary in summaries]
    kinds = {method: kind for run in runs for method, kind in _kinds(run).items()}
    counts = [run.head["machine"]["ranks"] for run in runs]
    panels = _panels(runs[0], kinds)
    figure = empty_figure(runs[-1], 5.6, counts=counts)
    for axes, (name, (size, samples_of)) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        points: Points = {method: {} for method in kinds}
        for summary, count in zip(summaries, counts, strict=True):
            for method, samples in samples_of(summary.measured[size]).items():
                points[method][count] = median_interval(samples)
        _curves(axes, points, style=looks(kinds), wrong=_wrong(*summaries))
        axes.set(
            title=name, xlabel="ranks (points a little aside of each other)", ylabel="ms (median and its 95 % interval)"
        )
        axes.set_xticks(counts, map(str, counts))
        axes.set_xticks([], minor=True)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    return figure


def _panels(run: Run, kinds: Mapping[str, str]) -> dict[str, tuple[int | None, Callable[[Measured], Samples]]]:
    """Return what `scaling` draws, by title: of which size, and which samples; no ceiling where it sends nothing."""

    def comm(samples: Measured) -> Samples:
        return {method: seconds for method, seconds in samples.comm.items() if kinds.get(method) != "ceiling"}

    sizes = run.head["config"]["sizes"]
    if sizes:
        return {f"Exchange of {text.size(size)}": (size, comm) for size in (sizes[0], sizes[-1])}
    return {"Iteration": (None, lambda samples: samples.iteration), "The exchange alone": (None, comm)}


def _curves(axes: Axes, points: Points, *, style: dict[str, dict[str, Any]], wrong: Collection[str]) -> None:
    """Draw each method's medians with their intervals, a little to the side of each other's."""
    places = sorted({place for medians in points.values() for place in medians})
    step = min((after / before for before, after in pairwise(places)), default=2.0)
    for number, (method, medians) in enumerate(points.items()):
        if medians:
            middles, aside = list(medians.values()), step ** (APART * (number / len(points) - 0.5))
            axes.errorbar(
                [place * aside for place in medians], [1e3 * middle.median for middle in middles],
                yerr=np.hstack([1e3 * error_bar(middle) for middle in middles]), label=marked(method, wrong),
                markersize=5, linewidth=1.3, elinewidth=0.9, capsize=2.5, **style[method],
            )  # fmt: skip
    axes.set(xscale="log", yscale="log")
    axes.grid(color="#e4e4e4")
    axes.set_axisbelow(True)
    label_plainly(axes.yaxis)
