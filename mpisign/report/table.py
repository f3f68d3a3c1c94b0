"""A run's rows as text: what bench prints and report redraws."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from .records import Run
from .rows import (
    Row,
    answer,
    breakdown,
    grouped,
    iterations,
    overlapped_breakdown,
    phases,
    rows,
    share_of_spans,
    widest,
)
from .statistics import ENOUGH, Median

FORMATS = ("table", "markdown", "csv", "json", "lines")
CROWDED = "more ranks than cores; they wait for each other's turns, and the times say little about a cluster"
SETTLED = 2  # iterations until DDP has divided the gradient anew and the plans for its buckets are made


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


def _speedup(row: Row) -> str:
    if row["speedup"] is None:
        return ""
    return f"{_ratio(row['speedup'])} {_interval(row['speedup_low'], row['speedup_high'], _ratio)}"


def _against_rival(row: Row) -> str:
    if row["rival_speedup"] is None or row["rival_verdict"] in ("fastest rival", "ceiling"):
        return row["rival_verdict"] or ""
    interval = _interval(row["rival_low"], row["rival_high"], _ratio)
    return f"{_ratio(row['rival_speedup'])} {interval} {row['rival_verdict']}"


def _exposed(row: Row) -> str:
    if row["exposed_s"] is None:
        return ""
    interval = _interval(row["exposed_low_s"], row["exposed_high_s"], milliseconds)
    return f"{milliseconds(row['exposed_s'])} {interval}"


Columns = dict[str, Callable[[Row], Any]]
_BYTES: Columns = {
    "images/s": lambda row: _ratio(row["images_per_s"]),
    "sent MB": lambda row: _mb(row["sent_bytes"]),
    "received MB": lambda row: _mb(row["received_bytes"]),
    "busiest rank MB": lambda row: _mb(row["busiest_bytes"]),
    "speed-up of the iteration [interval]": _speedup,
}
_VERDICT: Columns = {
    "verdict": lambda row: row["verdict"] or "",
    "against the fastest rival [interval]": _against_rival,
    "wrong": lambda row: "" if row["wrong"] is None else row["wrong"],
}
COLUMNS: dict[str, Columns] = {  # by schedule
    "serial": {
        "method": lambda row: row["method"],
        "compute ms": lambda row: milliseconds(row["compute_s"]),
        "comm ms [95 % interval]": lambda row: _comm(row),
        "iteration ms": lambda row: milliseconds(row["iteration_s"]),
        **_BYTES,
        "comm ratio": lambda row: _ratio(row["comm_ratio"]),
        **_VERDICT,
    },
    "overlap": {
        "method": lambda row: row["method"],
        "iteration ms [95 % interval]": lambda row: f"{milliseconds(row['iteration_s'])} " + _interval(
            row["iteration_low_s"], row["iteration_high_s"], milliseconds),
        "exposed comm ms [interval]": _exposed,
        "comm alone ms": lambda row: milliseconds(row["comm_s"]),
        "hidden": lambda row: "" if row["hidden"] is None else f"{row['hidden']:.0%}",
        **_BYTES,
        **_VERDICT,
    },
}  # fmt: skip


# A row's line for site suites: "mpisign:" and these, key=value, in this order in every schedule. Regular expressions
# elsewhere depend on it: nothing is renamed or put elsewhere, and what is new comes last.
LINE: Columns = {
    "method": lambda row: row["method"],
    "ranks": lambda row: row["ranks"],
    "iteration_s": lambda row: f"{row['iteration_s']:.3e}",
    "comm_s": lambda row: f"{row['comm_s']:.3e}",
    "speedup": lambda row: _plain(row["speedup"]),
    "speedup_low": lambda row: _plain(row["speedup_low"]),
    "speedup_high": lambda row: _plain(row["speedup_high"]),
    "verdict": lambda row: row["verdict"] and row["verdict"].replace(" ", "-"),
    "wrong": lambda row: row["wrong"],
    "bytes": lambda row: row.get("bytes"),
}


def _plain(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"


def line(row: Row) -> str:
    """Return a row that has also `ranks` as its line for site suites; what it lacks is "-"."""
    cells = {key: cell(row) for key, cell in LINE.items()}
    return "mpisign: " + " ".join(f"{key}={'-' if value is None else value}" for key, value in cells.items())


class Part(NamedTuple):
    """A table with what is said above it; its cells are text."""

    caption: str
    headers: list[str]
    cells: list[list[str]]


def render(run: Run, form: str, per_iteration: bool = False) -> str:
    """Return a run in one of FORMATS; `table` and `markdown` have all of it, the others the rows alone."""
    if form == "lines":
        return "\n".join(line({"ranks": run.head["machine"]["ranks"]} | row) for row in rows(run))
    if form == "json":
        return json.dumps(rows(run), indent=1)
    if form == "csv":
        return _csv(rows(run))
    style = "pipe" if form == "markdown" else "simple"
    main, *others = parts(run)
    if per_iteration:
        others.append(_iterations(run))
    said = [title(run), grid(main.cells, main.headers, style), answer_line(run)]
    said += [f"{part.caption}\n\n{grid(part.cells, part.headers, style)}" for part in others]
    said.append("\n".join(("- " if form == "markdown" else "") + note for note in notes(run)))
    return "\n\n".join(filter(None, said))


def parts(run: Run) -> list[Part]:
    """Return the main table and, of a model, those that tell where the time goes."""
    if run.head["config"]["sizes"]:
        return [_sweep(run)]
    overlap = run.head["config"]["schedule"] == "overlap"
    return [_methods(run), _breakdown(run), *([_overlapped_breakdown(run)] if overlap else [])]


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
    schedule = "" if config["sizes"] else f", schedule {config['schedule']}"
    fewest, most = iterations(run)
    count = f"{most}" if fewest == most else f"{fewest} to {most}"
    gpus = run.head["machine"].get("gpus", 0)
    shared = f" on {gpus} shared GPU{'s' * (gpus > 1)} (NOT A CLUSTER'S TIMES)" if 0 < gpus < ranks else ""
    return f"{what}; {ranks} ranks{shared}, {count} iterations{schedule}; baseline: {baseline}"


def _methods(run: Run) -> Part:
    columns = COLUMNS[run.head["config"]["schedule"]]
    cells = [[str(cell(row)) for cell in columns.values()] for row in rows(run)]
    return Part("Each method, and how it stands to the baseline:", list(columns), cells)


def answer_line(run: Run) -> str:
    """Return the line that says whether the vote pays here; nothing of a sweep."""
    if run.head["config"]["sizes"]:
        return ""
    found = answer(run)
    if found is None:
        return "Does it pay here? To tell needs a vote and a rival."
    return (
        f"Does it pay here? The fastest vote, {found['vote']}, against the fastest rival, {found['rival']}: "
        f"{milliseconds(found['vote_s'])} ms against {milliseconds(found['rival_s'])} ms an iteration, "
        f"speed-up {_speedup(found)}: {found['verdict']}. (Both are chosen by these very samples.)"
    )


def _sweep(run: Run) -> Part:
    """Return one row a size: each method's milliseconds, and what was wrong in all."""
    found, methods = grouped(rows(run), "bytes"), run.head["methods"]
    cells = [
        [size_text(size), *map(_comm, group), str(sum(row["wrong"] or 0 for row in group))]
        for size, group in found.items()
    ]
    headers = ["fp32 size", *(f"{method} ms" for method in methods), "wrong"]
    return Part("The exchange alone, by the size of the vector [95 % interval]:", headers, cells)


def size_text(count: int) -> str:
    """Return a number of bytes as K, M or G where that is whole."""
    for unit, size in (("G", 2**30), ("M", 2**20), ("K", 2**10)):
        if count % size == 0:
            return f"{count // size}{unit}"
    return str(count)


def _breakdown(run: Run) -> Part:
    schedule = " if nothing overlaps" if run.head["config"]["schedule"] == "overlap" else ""
    caption = (
        f"Where an iteration's time goes{schedule}, ms (mean over ranks, median over iterations; "
        "wait is the barrier before the clock starts):"
    )
    return _phases(caption, *breakdown(run))


def _overlapped_breakdown(run: Run) -> Part:
    caption = (
        "Where an overlapped iteration's time goes, ms (mean over ranks, median over iterations); from pack on in the "
        "exchange's thread, during backward; a baseline's exchange is not told apart from backward:"
    )
    return _phases(caption, *overlapped_breakdown(run))


def _phases(caption: str, names: list[str], found: list[Row]) -> Part:
    cells = [[row["method"], *(milliseconds(row[name]) if row[name] else "" for name in names)] for row in found]
    return Part(caption, ["method", *names], cells)


def _iterations(run: Run) -> Part:
    """Return one row an iteration and method: its slowest rank."""
    lines = run.overlapped or run.exchange
    names = phases(lines)
    slowest: dict[tuple[int | None, int, str], dict[str, Any]] = {}
    for line in lines:
        key = line.get("bytes"), line["iteration"], line["method"]
        if key not in slowest or line["seconds"] > slowest[key]["seconds"]:
            slowest[key] = line
    cells = [
        [
            size_text(size) if size else "all",
            str(i),
            method,
            str(line["rank"]),
            milliseconds(line["seconds"]),
            *(milliseconds(line[name]) if name in line else "" for name in names),
        ]
        for (size, i, method), line in slowest.items()
    ]
    headers = ["fp32 size", "iteration", "method", "slowest rank", "iteration ms" if run.overlapped else "comm ms"]
    return Part("Each iteration, its slowest rank:", [*headers, *names], cells)


def notes(run: Run) -> list[str]:
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
    if machine.get("gpus"):
        fault = machine["device_memory_fault"]
        said.append(f"votes over MPI go {'from device memory' if fault is None else f'by way of the host: {fault}'}")
    said.append(f"memory: at most {max(run.end['peak_bytes']) / 1e9:.2f} GB resident in a rank")
    said.append(
        f"vote: tie rule {config['tie']}, momentum {config['momentum']}, traitors: {config['adversaries']}"
        + (f" ({config['adversary']})" if config["adversaries"] else "")
        + f"; seed {config['seed']}"
    )
    if machine["ranks"] == 1:
        said.append("one rank: there is nothing to exchange; the times are those of the coding alone")
    if machine["ranks_per_core"] > 1:
        said.append(f"WARNING: {CROWDED}")
    elif machine.get("bound") is False:
        said.append(
            "WARNING: ranks are not bound to cores: as their threads wander, a sample resembles the one before it, and "
            "verdicts are wrong more often than they say (docs/measuring.md; mpirun -bind-to core, or the like)"
        )
    settled = 1 if config["sizes"] else SETTLED
    if config["warmup"] < settled:
        said.append(f"WARNING: {config['warmup']} warm-up iterations: the first {settled} make the exchanges' plans")
    fewest, _ = iterations(run)
    if fewest < ENOUGH:
        least = 1 - 2.0 ** (1 - fewest)
        said.append(
            f"WARNING: {fewest} iterations: intervals are the range, which covers the median with {least:.1%}, not 95 %"
        )
    if config.get("until"):
        reached = max(widest(run, size) for size in config["sizes"] or [None])
        said.append(
            ("WARNING: " if reached > config["until"] else "")
            + f"asked to go on, for {config['time_cap']:.0f} s at most, until every speed-up's interval is within "
            f"{config['until']:.3g} of it to each side: within {reached:.2g}"
        )
    if config["adversaries"]:
        said.append(
            "a vote's times include what a traitor takes to make its lie up; a dense method's only if overlapped"
        )
    if run.head["lossy"]:
        said.append("checked of PowerSGD, which is lossy: only that all ranks get the same bits")
    if config["schedule"] == "overlap":
        said.append(
            "checked: each exchange of a held gradient in full, each overlapped one on a piece of every bucket, "
            "another each time; keeping all of them would cost time"
        )
    if "measuring" in run.end:
        said.append(_measuring(run))
    if run.end.get("replicas_identical") is not None:
        said.append(
            "replicas: " + ("bit-identical on all ranks" if run.end["replicas_identical"] else "DIFFER between ranks")
        )
    return said


def _measuring(run: Run) -> str:
    """Say what measuring itself costs."""
    cost = run.end["measuring"]
    text = (
        f"measuring: a span costs {1e6 * cost['span_s']:.2g} us, {cost['spans_per_iteration']} of them in an iteration "
        f"are {100 * share_of_spans(run):.2g} % of it; outside the samples: a barrier, "
        f"{milliseconds(cost['barrier_s'])} ms, and the check, {milliseconds(cost['check_s'])} ms an exchange"
    )
    if "keep_pieces_s" not in cost:
        return text
    return (
        f"{text}, {milliseconds(cost['check_pieces_s'])} ms an overlapped iteration; within these, for every method: "
        f"keeping the pieces to check, {milliseconds(cost['keep_pieces_s'])} ms"
    )


def _csv(found: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(found[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return text.getvalue().rstrip("\n")


def ratio_text(ratio: Median) -> str:
    """Return a ratio with its interval."""
    return f"{_ratio(ratio.median)} {_interval(ratio.low, ratio.high, _ratio)}"
