"""A run as text: what bench prints and report prints again."""

from __future__ import annotations

import csv
import io
import json
import math
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from . import harmless, samples, sweep, text
from .notes import notes
from .phases import IMBALANCE, Phases
from .records import Run
from .rows import Row
from .statistics import Median
from .summary import Summary
from .text import milliseconds, ratio


def _comm(row: Row) -> str:
    return text.milliseconds_and_interval(Median(row["comm_s"], row["comm_low_s"], row["comm_high_s"]))


def _speedup(row: Row) -> str:
    return "" if row["speedup"] is None else sweep.speedup(row)


def _against_rival(row: Row) -> str:
    if row["rival_speedup"] is None or row["rival_verdict"] in ("fastest rival", "ceiling", "wrong"):
        return row["rival_verdict"] or ""
    speedup = text.ratio_and_interval(Median(row["rival_speedup"], row["rival_low"], row["rival_high"]))
    return f"{speedup} {row['rival_verdict']}"


def _iteration(row: Row) -> str:
    return text.milliseconds_and_interval(Median(row["iteration_s"], row["iteration_low_s"], row["iteration_high_s"]))


def _exposed(row: Row) -> str:
    if row["exposed_s"] is None:
        return ""
    return text.milliseconds_and_interval(Median(row["exposed_s"], row["exposed_low_s"], row["exposed_high_s"]))


Columns = dict[str, Callable[[Row], Any]]
TOGETHER = "95 % for all rows together"
_BYTES: Columns = {
    "images/s": lambda row: ratio(row["images_per_s"]),
    "sent MB": lambda row: text.megabytes(row["sent_bytes"]),
    "received MB": lambda row: text.megabytes(row["received_bytes"]),
    "busiest rank MB": lambda row: text.megabytes(row["busiest_bytes"]),
    f"speed-up of the iteration [{TOGETHER}]": _speedup,
}
_VERDICT: Columns = {
    "verdict": lambda row: row["verdict"] or "",
    f"against the fastest rival [{TOGETHER}]": _against_rival,
    "wrong": lambda row: "" if row["wrong"] is None else row["wrong"],
}
COLUMNS: dict[str, Columns] = {  # by schedule
    "serial": {
        "method": lambda row: row["method"],
        "compute ms": lambda row: milliseconds(row["compute_s"]),
        "comm ms [95 % interval]": _comm,
        "iteration ms": lambda row: milliseconds(row["iteration_s"]),
        **_BYTES,
        "comm ratio": lambda row: ratio(row["comm_ratio"]),
        **_VERDICT,
    },
    "overlap": {
        "method": lambda row: row["method"],
        "iteration ms [95 % interval]": _iteration,
        "exposed comm ms [interval]": _exposed,
        "comm alone ms": lambda row: milliseconds(row["comm_s"]),
        "hidden": lambda row: "" if row["hidden"] is None else f"{row['hidden']:.0%}",
        **_BYTES,
        **_VERDICT,
    },
}


# A row's line for site suites: "mpisign:" and these, key=value, in this order in every schedule. Regular expressions
# elsewhere depend on it: do not rename or reorder anything, and add new keys at the end. The names are those of rows.
LINE: Columns = {
    "method": lambda row: row["method"],
    "ranks": lambda row: row["ranks"],
    "iteration_s": lambda row: f"{row['iteration_s']:.3e}",
    "comm_s": lambda row: f"{row['comm_s']:.3e}",
    "speedup": lambda row: _plain(row["speedup"]),
    "speedup_low": lambda row: _plain(row["speedup_low"]),
    "speedup_high": lambda row: _plain(row["speedup_high"]),
    "verdict": lambda row: row["verdict"],
    "wrong": lambda row: row["wrong"],
    "bytes": lambda row: row.get("bytes"),
    "model": lambda row: row["model"],
    "schedule": lambda row: row["schedule"],
    "baseline": lambda row: row["baseline"],
    "rival": lambda row: row["rival"],
    "rival_speedup": lambda row: _plain(row["rival_speedup"]),
    "rival_low": lambda row: _plain(row["rival_low"]),
    "rival_high": lambda row: _plain(row["rival_high"]),
    "rival_verdict": lambda row: row["rival_verdict"],
}


def _plain(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"


def line(row: Row) -> str:
    """Return a row as its line for site suites; "-" stands for what it lacks, and for white space."""
    cells = {key: "-" if (value := cell(row)) is None else "-".join(str(value).split()) for key, cell in LINE.items()}
    return "mpisign: " + " ".join(f"{key}={value}" for key, value in cells.items())


class Part(NamedTuple):
    """A table and its caption; its cells are text."""

    caption: str
    headers: list[str]
    cells: list[list[str]]


def render(summary: Summary, form: str, *, per_iteration: bool = False) -> str:
    """Return a run in one of FORMATS; `table` and `markdown` have all of it, the others the rows alone."""
    rows = summary.rows
    if form == "lines":
        return "\n".join(map(line, rows))
    if form == "json":
        return json.dumps(rows, indent=1)
    if form == "csv":
        return _csv(rows)
    style = "pipe" if form == "markdown" else "simple"
    main, *others = parts(summary)
    if per_iteration:
        others.append(_each_iteration(summary.run))
    lines = "\n".join(filter(None, (answer_line(summary), smallest_line(summary))))
    blocks = [title(summary.run), grid(main.cells, main.headers, style=style), lines]
    blocks += [f"{part.caption}\n\n{grid(part.cells, part.headers, style=style)}" for part in others]
    blocks.append("\n".join(f"- {harmless.markdown(note)}" if form == "markdown" else note for note in notes(summary)))
    return "\n\n".join(filter(None, blocks))


def _csv(rows: list[Row]) -> str:
    printed = io.StringIO()
    writer = csv.DictWriter(printed, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(dict(zip(row, harmless.cells(row.values()), strict=True)) for row in rows)
    return printed.getvalue().rstrip("\n")


def parts(summary: Summary) -> list[Part]:
    """Return the main table; for a model those that show where the time goes, for a sweep the one by size."""
    if summary.is_sweep:
        return [_sweep(summary), *_by_size(summary)]
    shown = [_methods(summary)]
    if summary.breakdown:
        iteration, _, overlapped = summary.breakdown
        shown.append(_breakdown(iteration, overlaps=summary.overlaps))
        if overlapped:
            shown.append(_overlapped_breakdown(overlapped))
    return shown


def grid(cells: Iterable[Iterable[Any]], headers: list[str], *, style: str) -> str:
    """Lay out cells that are text already."""
    from tabulate import tabulate

    if style == "simple":  # a terminal is narrower than a page
        headers = [textwrap.fill(header, 16) for header in headers]
    if style == "pipe":
        cells = [[harmless.markdown(str(cell)) for cell in row] for row in cells]
        headers = [harmless.markdown(header) for header in headers]
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
    if run.head["block"] > 1:
        schedule += f" (a sample is the mean of {run.head['block']} in a row)"
    fewest, most = samples.iterations(run)
    count = f"{most}" if fewest == most else f"{fewest} to {most}"
    gpus = run.head["machine"].get("gpus", 0)
    shared = f" on {gpus} shared GPU{'s' * (gpus > 1)} (NOT A CLUSTER'S TIMES)" if 0 < gpus < ranks else ""
    return f"{what}; {ranks} ranks{shared}, {count} iterations{schedule}; baseline: {baseline}"


def answer_line(summary: Summary) -> str:
    """Return the line that says whether the vote pays here; for a sweep, at which sizes."""
    if not any(summary.answers.values()):
        return "Does it pay here? To tell needs a vote and a rival, both without a wrong result."
    answer = summary.answer
    if answer is None:
        return f"Does it pay here? {sweep.crossover(summary.answers)}"
    opposed = " (the medians and the ratios point different ways)" if answer["opposed"] else ""
    return (
        f"Does it pay here? The fastest vote, {answer['vote']}, against the fastest rival, {answer['rival']}: "
        f"{milliseconds(answer['vote_s'])} ms against {milliseconds(answer['rival_s'])} ms an iteration (medians), "
        f"speed-up {_speedup(answer)} (median of the ratios of paired samples): {answer['verdict']}{opposed}."
    )


def smallest_line(summary: Summary) -> str:
    """Return the line that says how small a difference such a run finds; nothing where there is nothing to hold."""
    between = _from_to(summary.smallest_answers, by="size"), "between the fastest vote and the fastest rival"
    from_baseline = _from_to(summary.smallest, by="row"), "from the baseline"
    if not (summary.smallest_answers or summary.smallest):
        return ""
    told = [f"{shares} {where}" for shares, where in (between, from_baseline) if shares]
    if not told:
        return "What this run could find: no difference, however large, with so few samples."
    if_so = ", were its samples independent" if summary.overlaps else ""  # which blocks seem not to be, quite
    return (
        f"What this run could find{if_so}: in most such runs a difference of "
        f"{' and of '.join(told)} is told from none. "
        'A smaller one may well be there: "indistinguishable" does not mean equal.'
    )


def _from_to(shares: Iterable[float], *, by: str) -> str:
    """Return the first and the last of shares in rising order that are finite; nothing without any."""
    found = [text.percent(share) for share in shares if math.isfinite(share)]
    if not found:
        return ""
    return found[0] if found[0] == found[-1] else f"{found[0]} to {found[-1]}, by {by},"


def _methods(summary: Summary) -> Part:
    columns = COLUMNS[summary.run.head["config"]["schedule"]]
    cells = [[str(cell(row)) for cell in columns.values()] for row in summary.rows]
    return Part("Each method, and how it stands to the baseline:", list(columns), cells)


def _comm_of_size(row: Row) -> str:
    return f"{_comm(row)} wrong" if row["wrong"] else _comm(row)


def _sweep(summary: Summary) -> Part:
    """Return one row a size: each method's milliseconds, and how many coordinates were wrong in all."""
    by_size: dict[int, list[Row]] = defaultdict(list)
    for row in summary.rows:
        by_size[row["bytes"]].append(row)
    cells = [
        [text.size(size), *map(_comm_of_size, rows), str(sum(row["wrong"] or 0 for row in rows))]
        for size, rows in by_size.items()
    ]
    headers = ["fp32 size", *(f"{method} ms" for method in summary.run.head["methods"]), "wrong"]
    return Part("The exchange alone, by the size of the vector [95 % interval]:", headers, cells)


def _by_size(summary: Summary) -> list[Part]:
    """Return the table of the fastest vote against the fastest rival at each size; none without any of them."""
    if not any(summary.answers.values()):
        return []
    headers = ["fp32 size", "fastest vote", "ms", "fastest rival", "ms", f"rival / vote [{TOGETHER}]", "the vote is"]
    cells = [[text.size(size), *sweep.cells(answer)] for size, answer in summary.answers.items() if size]
    return [Part("The fastest vote against the fastest rival, by the size of the vector:", headers, cells)]


def _breakdown(phases: Phases, *, overlaps: bool) -> Part:
    if_so = " if nothing overlaps" if overlaps else ""
    median = "the median of such an iteration" if overlaps else "the iteration above"
    caption = (
        f"Where the time of an iteration goes{if_so}, ms: parts that add up to {median} (means over ranks, of the "
        f"middle half of the iterations; {IMBALANCE} is what the slowest rank takes longer than the mean):"
    )
    return _phases(caption, phases)


def _overlapped_breakdown(phases: Phases) -> Part:
    caption = (
        f"Where the time of an overlapped iteration goes, ms: parts up to {IMBALANCE}, which add up to the iteration "
        "above; after it a vote's exchange, in its thread, in backward; a rival's is not told apart from backward:"
    )
    return _phases(caption, phases)


def _phases(caption: str, phases: Phases) -> Part:
    cells = [
        [row["method"], *(milliseconds(row[name]) if row[name] else "" for name in phases.names)] for row in phases.rows
    ]
    return Part(caption, ["method", *phases.names], cells)


def _each_iteration(run: Run) -> Part:
    """Return one row an iteration and method: its slowest rank."""
    overlapped = run.overlapped
    lines = overlapped or run.exchange
    names = samples.spans_of(lines)
    slowest: dict[tuple[int | None, int, str], dict[str, Any]] = {}
    for line in lines:
        key = line.get("bytes"), line["iteration"], line["method"]
        if key not in slowest or line["seconds"] > slowest[key]["seconds"]:
            slowest[key] = line
    cells = [
        [
            text.size(size) if size else "all",
            str(i),
            method,
            str(line["rank"]),
            milliseconds(line["seconds"]),
            *(milliseconds(line[name]) if name in line else "" for name in names),
        ]
        for (size, i, method), line in slowest.items()
    ]
    headers = ["fp32 size", "iteration", "method", "slowest rank", "iteration ms" if overlapped else "comm ms"]
    return Part("Each iteration, its slowest rank:", [*headers, *names], cells)
