"""A run's record as rows, and rows as text: what bench prints and report redraws."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .records import Run
from .statistics import ENOUGH, Median, median_interval, verdict

Row = dict[str, Any]

KEYS = ("method", "baseline", "compute_s", "comm_s", "comm_low_s", "comm_high_s", "iteration_s", "images_per_s",
        "sent_bytes", "received_bytes", "busiest_bytes", "speedup", "speedup_low", "speedup_high", "comm_ratio",
        "verdict", "wrong")  # fmt: skip
COMPUTE_SPANS = ("data", "forward", "backward", "step")
FACTS_OF_A_LINE = ("type", "iteration", "rank", "method", "bytes", "seconds", "wrong")  # all else is a span
CODING_SPANS = (
    "pack",
    "vote",
    "unpack",
)  # `wait` comes before the clock starts; every other span is the exchange
SETTLED = 2  # iterations until DDP has divided the gradient anew and the plans for its buckets are made
FORMATS = ("table", "markdown", "csv", "json")


def _slowest(lines: Iterable[dict[str, Any]], seconds: Callable[[dict[str, Any]], float]) -> NDArray[np.float64]:
    """Return one sample an iteration: its slowest rank's seconds."""
    samples: dict[int, float] = defaultdict(float)
    for line in lines:
        samples[line["iteration"]] = max(samples[line["iteration"]], seconds(line))
    return np.array([samples[iteration] for iteration in sorted(samples)])


def _grouped(lines: Iterable[dict[str, Any]], key: str) -> dict[Any, list[dict[str, Any]]]:
    groups: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        groups[line[key]].append(line)
    return groups


def compute_seconds(line: dict[str, Any]) -> float:
    """Return the seconds of a line of type "compute"."""
    return float(sum(line[name] for name in COMPUTE_SPANS))


def comm_samples(run: Run, size: int | None = None) -> dict[str, NDArray[np.float64]]:
    """Return each method's samples of the exchange in seconds, the slowest rank's, one an iteration."""
    lines = [line for line in run.exchange if line.get("bytes") == size]
    return {
        method: _slowest(group, lambda line: float(line["seconds"]))
        for method, group in _grouped(lines, "method").items()
    }


def rows(run: Run) -> list[Row]:
    """Return a row of KEYS for each method, in the order asked for; for each size, and with `bytes`, in a sweep."""
    sizes = run.head["config"]["sizes"]
    return [row for size in sizes or [None] for row in _rows_of(run, size)]


def _rows_of(run: Run, size: int | None) -> list[Row]:
    head, comm = run.head, comm_samples(run, size)
    lines = _grouped((line for line in run.exchange if line.get("bytes") == size), "method")
    compute = _slowest(run.compute, compute_seconds) if run.compute else np.zeros(len(next(iter(comm.values()))))
    images = head["machine"]["ranks"] * head["config"]["batch_size"] if run.compute else None
    found = []
    for method in head["methods"]:
        sent, received = (np.array(way) for way in head["traffic"][str(size or "model")][method])
        exchange, iteration = median_interval(comm[method]), compute + comm[method]
        row: Row = {
            "method": method,
            "baseline": head["baseline"],
            "compute_s": float(np.median(compute)),
            "comm_s": exchange.median,
            "comm_low_s": exchange.low,
            "comm_high_s": exchange.high,
            "iteration_s": float(np.median(iteration)),
            "images_per_s": images / float(np.median(iteration)) if images else None,
            "sent_bytes": float(np.median(sent)),
            "received_bytes": float(np.median(received)),
            "busiest_bytes": int(max(sent.max(), received.max())),
            **_against(comm, compute, head["baseline"], method),
            "wrong": max(line["wrong"] for line in lines[method]) if method != "none" else None,
        }
        found.append(({"bytes": size} if size else {}) | row)
    return found


def _against(
    comm: dict[str, NDArray[np.float64]], compute: NDArray[np.float64], baseline: str | None, method: str
) -> Row:
    """Hold a method against the baseline: medians of the ratios of paired samples, with their interval."""
    if baseline is None:
        return dict.fromkeys(("speedup", "speedup_low", "speedup_high", "comm_ratio", "verdict"))
    speedup = median_interval((compute + comm[baseline]) / (compute + comm[method]))
    said = {baseline: "baseline", "none": "ceiling"}.get(method) or verdict(speedup, len(compute))
    return {
        "speedup": speedup.median,
        "speedup_low": speedup.low,
        "speedup_high": speedup.high,
        "comm_ratio": float(np.median(comm[baseline] / comm[method])) if method != "none" else None,
        "verdict": said,
    }


def breakdown(run: Run) -> tuple[list[str], list[Row]]:
    """Return the phases of an iteration and a row for each method: seconds, mean over ranks, median over iterations."""
    names = ["compute", *_phases(run), "step"]
    compute = _mean_over_ranks(run.compute, lambda line: compute_seconds(line) - line["step"])
    step = _mean_over_ranks(run.compute, lambda line: line["step"])
    found = []
    for method, lines in _grouped(run.exchange, "method").items():
        row: Row = {"method": method, "compute": compute, "step": step}
        for name in _phases(run):
            row[name] = _mean_over_ranks(lines, lambda line, name=name: line.get(name, 0.0))  # type: ignore[misc]
        row["other"] = _mean_over_ranks(lines, _unnamed)
        found.append(row)
    order = run.head["methods"]
    return [*names, "other"], sorted(found, key=lambda row: order.index(row["method"]))


def _phases(run: Run) -> list[str]:
    """Return the spans of the exchanges: wait and pack first, vote and unpack last, collectives between them."""
    seen = dict.fromkeys(name for line in run.exchange for name in line if name not in FACTS_OF_A_LINE)
    collectives = [name for name in seen if name not in ("wait", *CODING_SPANS)]
    return [name for name in ("wait", "pack", *sorted(collectives), "vote", "unpack") if name in seen]


def _unnamed(line: dict[str, Any]) -> float:
    """Return the seconds of an exchange that no span names: all of a baseline's, little of a vote's."""
    named = sum(value for name, value in line.items() if name not in (*FACTS_OF_A_LINE, "wait"))
    return float(line["seconds"]) - float(named)


def _mean_over_ranks(lines: Iterable[dict[str, Any]], seconds: Callable[[dict[str, Any]], float]) -> float:
    means = [np.mean([seconds(line) for line in group]) for group in _grouped(lines, "iteration").values()]
    return float(np.median(means)) if means else 0.0


def milliseconds(seconds: float) -> str:
    """Return seconds as milliseconds, four digits."""
    return f"{1e3 * seconds:.4g}" if seconds < 1 else f"{1e3 * seconds:.0f}"


def _mb(count: float) -> str:
    return f"{count / 1e6:.3g}" if count < 1e9 else f"{count / 1e6:.0f}"


def _interval(low: float, high: float, form: Callable[[float], str]) -> str:
    return f"[{form(low)}, {form(high)}]"


def _comm(row: Row) -> str:
    return f"{milliseconds(row['comm_s'])} {_interval(row['comm_low_s'], row['comm_high_s'], milliseconds)}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"


COLUMNS: dict[str, Callable[[Row], Any]] = {
    "method": lambda row: row["method"],
    "compute ms": lambda row: milliseconds(row["compute_s"]),
    "comm ms [95 % interval]": lambda row: _comm(row),
    "iteration ms": lambda row: milliseconds(row["iteration_s"]),
    "images/s": lambda row: _ratio(row["images_per_s"]),
    "sent MB": lambda row: _mb(row["sent_bytes"]),
    "received MB": lambda row: _mb(row["received_bytes"]),
    "busiest rank MB": lambda row: _mb(row["busiest_bytes"]),
    "speed-up of the iteration [interval]": lambda row: "" if row["speedup"] is None else
        f"{_ratio(row['speedup'])} {_interval(row['speedup_low'], row['speedup_high'], _ratio)}",
    "comm ratio": lambda row: _ratio(row["comm_ratio"]),
    "verdict": lambda row: row["verdict"] or "",
    "wrong": lambda row: "" if row["wrong"] is None else row["wrong"],
}  # fmt: skip


def render(run: Run, form: str, per_iteration: bool = False) -> str:
    """Return a run in one of FORMATS; `table` and `markdown` have all of it, `csv` and `json` the rows alone."""
    if form == "json":
        return json.dumps(rows(run), indent=1)
    if form == "csv":
        return _csv(rows(run))
    style = "pipe" if form == "markdown" else "simple"
    parts = [title(run), _sweep(run, style) if run.head["config"]["sizes"] else _methods(run, style)]
    if run.compute:
        parts += [_breakdown(run, style)]
    if per_iteration:
        parts += [_iterations(run, style)]
    parts.append("\n".join(notes(run, "- " if form == "markdown" else "")))
    return "\n\n".join(parts)


def grid(cells: Iterable[Iterable[Any]], headers: list[str], style: str) -> str:
    """Lay out cells that are text already."""
    from tabulate import tabulate

    if style == "simple":  # a terminal is narrower than a page
        headers = [textwrap.fill(header, 16) for header in headers]
    align = ["left", *["right"] * (len(headers) - 1)]
    return str(tabulate(cells, headers, tablefmt=style, colalign=align, disable_numparse=True))


def title(run: Run) -> str:
    """Return the line above a table: what was exchanged, by how many, against what."""
    config, ranks = run.head["config"], run.head["machine"]["ranks"]
    what = "vectors of the sizes given (no model)" if config["sizes"] else (
        f"{config['model']}, {run.head['coordinates']:,} parameters, batch {config['batch_size']} a rank, "
        f"{config['data'] or 'synthetic'} pictures of {config['image_size']} x {config['image_size']}"
    )  # fmt: skip
    baseline = run.head["baseline"] or "none (nothing to compare with)"
    return f"{what}; {ranks} ranks, {config['iterations']} iterations; baseline: {baseline}"


def _methods(run: Run, style: str) -> str:
    return grid([[cell(row) for cell in COLUMNS.values()] for row in rows(run)], list(COLUMNS), style)


def _sweep(run: Run, style: str) -> str:
    """Return one row a size: each method's milliseconds, and what was wrong in all."""
    found, methods = _grouped(rows(run), "bytes"), run.head["methods"]
    cells = [
        [_size(size), *map(_comm, group),
         sum(row["wrong"] or 0 for row in group)]
        for size, group in found.items()
    ]  # fmt: skip
    return grid(cells, ["fp32 size", *(f"{method} ms" for method in methods), "wrong"], style)


def _size(count: int) -> str:
    for unit, size in (("G", 2**30), ("M", 2**20), ("K", 2**10)):
        if count % size == 0:
            return f"{count // size}{unit}"
    return str(count)


def _breakdown(run: Run, style: str) -> str:
    names, found = breakdown(run)
    cells = [[row["method"], *(milliseconds(row[name]) if row[name] else "" for name in names)] for row in found]
    text = (
        "Where an iteration's time goes, ms (mean over ranks, median over iterations; "
        "wait is the barrier before the clock starts):"
    )
    return f"{text}\n\n{grid(cells, ['method', *names], style)}"


def _iterations(run: Run, style: str) -> str:
    """Return one row an iteration and method: its slowest rank."""
    names = _phases(run)
    slowest: dict[tuple[int | None, int, str], dict[str, Any]] = {}
    for line in run.exchange:
        key = line.get("bytes"), line["iteration"], line["method"]
        if key not in slowest or line["seconds"] > slowest[key]["seconds"]:
            slowest[key] = line
    cells = [
        [
            _size(size) if size else "all",
            i,
            method,
            line["rank"],
            milliseconds(line["seconds"]),
            *(milliseconds(line[name]) if name in line else "" for name in names),
        ]
        for (size, i, method), line in slowest.items()
    ]
    headers = ["fp32 size", "iteration", "method", "slowest rank", "comm ms", *names]
    return f"Each iteration, its slowest rank:\n\n{grid(cells, headers, style)}"


def notes(run: Run, bullet: str = "") -> list[str]:
    """Return what has to be known about a table: what did not run, what the machine was, what to be wary of."""
    machine, config = run.head["machine"], run.head["config"]
    said = [f"{method} did not run: {why}" for method, why in run.head["skipped"].items()]
    said.append(
        f"machine: {machine['device']}, {machine['cores']} cores, {machine['nodes']} node(s), "
        f"{machine['ranks']} ranks, {machine['ranks_per_core']:.3g} ranks per core, "
        f"{machine['torch_threads']} torch thread(s) a rank"
    )
    said.append(
        f"software: {machine['mpi']} (thread level {machine['thread_level']}), torch {machine['torch']}, "
        f"numba {machine['numba']}, mpi4py {machine['mpi4py']}, Python {machine['python']}, "
        f"mpisign commit {machine['commit']}"
    )
    said.append(f"memory: at most {max(run.end['peak_bytes']) / 1e9:.2f} GB resident in a rank")
    said.append(
        f"vote: tie rule {config['tie']}, momentum {config['momentum']}, traitors: {config['adversaries']}"
        + (f" ({config['adversary']})" if config["adversaries"] else "")
        + f"; seed {config['seed']}"
    )
    if machine["ranks"] == 1:
        said.append("one rank: there is nothing to exchange; the times are those of the coding alone")
    if machine["ranks_per_core"] > 1:
        said.append(
            "WARNING: more ranks than cores; they wait for each other's turns, and the times say little about a cluster"
        )
    settled = SETTLED if run.compute else 1
    if config["warmup"] < settled:
        said.append(f"WARNING: {config['warmup']} warm-up iterations: the first {settled} make the exchanges' plans")
    if 0 < config["iterations"] < ENOUGH:
        least = 1 - 2.0 ** (1 - config["iterations"])
        said.append(
            f"WARNING: {config['iterations']} iterations: intervals are the range, "
            f"which covers the median with {least:.1%}, not 95 %"
        )
    if run.end.get("replicas_identical") is not None:
        said.append(
            "replicas: " + ("bit-identical on all ranks" if run.end["replicas_identical"] else "DIFFER between ranks")
        )
    return [bullet + line for line in said]


def _csv(found: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(found[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return text.getvalue().rstrip("\n")


def ratio_text(ratio: Median) -> str:
    """Return a ratio with its interval."""
    return f"{_ratio(ratio.median)} {_interval(ratio.low, ratio.high, _ratio)}"
