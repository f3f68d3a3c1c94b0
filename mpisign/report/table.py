"""A run as text: what bench prints and report prints again."""

from __future__ import annotations

import csv
import io
import json
import re
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from . import columns, harmless, phases, samples, text
from .answer import answer, answer_line, smallest_line
from .columns import ALL_ROWS, Columns
from .notes import not_run, notes, remarks
from .phases import IMBALANCE, Phases
from .records import Run
from .rows import Row
from .summary import Summary
from .text import WIDTH, milliseconds

TO_KNOW, NOT_RUN = "To know", "Not run"
HARD = "\N{NO-BREAK SPACE}"


class Part(NamedTuple):
    """A table and its caption; its cells are text."""

    caption: str
    headers: list[str]
    cells: list[list[str]]

    @property
    def words(self) -> list[bool]:
        """Which columns have words, and no number: these begin at the left, the others end at the right."""
        return [_words([row[at] for row in self.cells]) for at in range(len(self.headers))]


def render(
    summary: Summary,
    form: str,
    *,
    wide: bool = False,
    per_iteration: bool = False,
    baseline: bool = False,
    width: int = WIDTH,
) -> str:
    """Return a run in one of FORMATS; CSV has the rows alone, the others all that is known.

    `table` and `markdown` have the columns that fit a terminal, or all of them if `wide`. `baseline` holds the methods
    against the baseline instead of the fastest rival. The lines around a `table` are `width` columns long.
    """
    if form == "lines":
        return "\n".join(_lines(summary))
    if form == "json":
        return json.dumps(_whole(summary), indent=1)
    if form == "csv":
        return _csv(summary.rows)
    shown = parts(summary, wide=wide, baseline=baseline)
    if per_iteration:
        shown.append(_each_iteration(summary.run))
    return _markdown(summary, shown) if form == "markdown" else _terminal(summary, shown, width=width)


def _terminal(summary: Summary, shown: Sequence[Part], *, width: int) -> str:
    """Lay a run out for a terminal: the answer stands first, and last, where a terminal ends up."""
    main, *others = shown

    def wrapped(words: str, first: str = "", rest: str = "") -> str:
        return text.paragraph(words, width, first=first, rest=rest)

    answered = wrapped(answer_line(summary), rest="  ")
    blocks = [wrapped(title(summary.run)), answered, grid(main.cells, main.headers, style="simple")]
    blocks.append(wrapped(smallest_line(summary)))
    blocks += [f"{wrapped(part.caption)}\n\n{grid(part.cells, part.headers, style='simple')}" for part in others]
    for heading, said in ((TO_KNOW, notes(summary)), (NOT_RUN, not_run(summary))):
        if said:
            blocks.append("\n".join([f"{heading}:", *(wrapped(one, "- ", "  ") for one in said)]))
    return "\n\n".join(filter(None, [*blocks, answered]))


def _markdown(summary: Summary, shown: Sequence[Part]) -> str:
    main, *others = shown
    lines = "\n\n".join(filter(None, (answer_line(summary), smallest_line(summary))))
    blocks = [title(summary.run), grid(main.cells, main.headers, style="pipe"), lines]
    blocks += [f"{part.caption}\n\n{grid(part.cells, part.headers, style='pipe')}" for part in others]
    for heading, said in ((TO_KNOW, notes(summary)), (NOT_RUN, not_run(summary))):
        if said:
            blocks.append("\n".join([f"{heading}:\n", *(f"- {harmless.markdown(one)}" for one in said)]))
    return "\n\n".join(blocks)


def _lines(summary: Summary) -> list[str]:
    """Return a line a row for site suites, and one for each thing that has to be known, which begin otherwise."""
    said = [f"mpisign-{'warning' if remark.warning else 'note'}: {remark.text}" for remark in remarks(summary)]
    absent = [f"mpisign-not-run: {one}" for one in not_run(summary)]
    return [*map(columns.line, summary.rows), f"mpisign-answer: {answer_line(summary)}", *said, *absent]


def _whole(summary: Summary) -> dict[str, Any]:
    """Return a run for JSON: the rows, the answer, and what has to be known."""
    said = answer(summary)
    return {
        "rows": summary.rows,
        "answer": {"verdict": said.verdict, "word": said.word, "text": said.text},
        "warnings": [remark.text for remark in remarks(summary) if remark.warning],
        "notes": [remark.text for remark in remarks(summary) if not remark.warning],
        "not_run": summary.run.head["skipped"],
    }


def _csv(rows: list[Row]) -> str:
    printed = io.StringIO()
    writer = csv.DictWriter(printed, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(dict(zip(row, harmless.cells(row.values()), strict=True)) for row in rows)
    return printed.getvalue().rstrip("\n")


def parts(summary: Summary, *, wide: bool = False, baseline: bool = False) -> list[Part]:
    """Return the main table; for a model those that show where the time goes. `wide` ones have all columns."""
    if summary.is_sweep:
        by_size = _by_size(summary)
        return [by_size, *([_each_method(summary)] if wide else [])]
    shown = [_methods(summary, wide=wide, baseline=baseline)]
    if summary.breakdown:
        iteration, _, overlapped = summary.breakdown
        shown.append(_breakdown(iteration, overlaps=summary.overlaps, wide=wide))
        if overlapped:
            shown.append(_overlapped_breakdown(overlapped, wide=wide))
    return shown


def grid(cells: Iterable[Iterable[Any]], headers: Sequence[str], *, style: str) -> str:
    """Lay out cells that are text already; of "simple" and "pipe", the first is for a terminal.

    A column of words begins at the left, one of numbers ends at the right. On a terminal a header is broken where it is
    wider than what is below it.
    """
    from tabulate import tabulate

    rows = [list(map(str, row)) for row in cells]
    below = [[row[at] for row in rows] for at in range(len(headers))]
    align = ["left" if at == 0 or _words(column) else "right" for at, column in enumerate(below)]
    if style == "pipe":
        rows, headers = [[*map(harmless.markdown, row)] for row in rows], [*map(harmless.markdown, headers)]
        return str(tabulate(rows, headers, tablefmt=style, colalign=align, disable_numparse=True))
    broken = [_broken(header, max(map(len, column), default=0)) for header, column in zip(headers, below, strict=True)]
    height = max(map(len, broken))
    heads = [[""] * (height - len(lines)) + lines for lines in broken]
    rules = ["-" * max(map(len, [*head, *column])) for head, column in zip(heads, below, strict=True)]
    laid = [*zip(*heads, strict=True), rules, *rows]
    return str(tabulate(laid, tablefmt="plain", colalign=align, disable_numparse=True))


def _words(column: Sequence[str]) -> bool:
    """Tell whether a column has words, and no number."""
    return any(column) and not any(cell[:1].isdigit() or cell[:1] in "-[" for cell in column if cell)


def _broken(header: str, width: int) -> list[str]:
    """Break a header into lines as wide as its column, or as its longest word; what is in brackets stays together."""
    whole = re.sub(r"\[[^]]{,16}\]", lambda bracket: bracket[0].replace(" ", HARD), header)
    width = max(width, *map(len, whole.split(" ")))
    lines = textwrap.wrap(whole, width, break_long_words=False, break_on_hyphens=False)
    return [line.replace(HARD, " ") for line in lines]


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


def _methods(summary: Summary, *, wide: bool, baseline: bool) -> Part:
    if wide:
        every = columns.WIDE[summary.run.head["config"]["schedule"]]
        return _filled("Each method, and how it stands to the baseline and to the fastest rival:", every, summary.rows)
    held = columns.held_against(summary, baseline=baseline)
    caption = f"Each method, and how it stands to {held.other}:" if held else "Each method:"
    with_all, with_fewer = (
        _filled(caption, columns.narrow(summary, held, intervals=intervals), summary.rows)
        for intervals in (True, False)
    )
    return with_all if _fits(with_all) else with_fewer


def _fits(part: Part) -> bool:
    """Tell whether a table fits a terminal."""
    return max(map(len, grid(part.cells, part.headers, style="simple").splitlines())) <= WIDTH


def _filled(caption: str, shown: Columns, rows: Sequence[Row]) -> Part:
    """Return the table of these columns, without those that are empty."""
    filled = {header: [str(cell(row)) for row in rows] for header, cell in shown.items()}
    filled = {header: cells for header, cells in filled.items() if any(cells)}
    return Part(caption, list(filled), [list(row) for row in zip(*filled.values(), strict=True)])


def _each_method(summary: Summary) -> Part:
    """Return one row a size: each method's milliseconds, and how many coordinates were wrong in all."""
    cells = [
        [text.size(size), *(f"{columns.comm(row)}{' wrong' * bool(row['wrong'])}" for row in rows), _wrong(rows)]
        for size, rows in _rows_by_size(summary).items()
    ]
    headers = ["fp32 size", *(f"{method} ms" for method in summary.run.head["methods"]), "wrong"]
    return Part("Every method's exchange, by the size of the vector [95 % interval]:", headers, cells)


def _rows_by_size(summary: Summary) -> dict[int, list[Row]]:
    by_size: dict[int, list[Row]] = defaultdict(list)
    for row in summary.rows:
        by_size[row["bytes"]].append(row)
    return by_size


def _wrong(rows: Sequence[Row]) -> str:
    return text.count(sum(row["wrong"] or 0 for row in rows))


def _by_size(summary: Summary) -> Part:
    """Return one row a size: the fastest vote against the fastest rival."""
    cells = []
    for size, rows in _rows_by_size(summary).items():
        taken = {row["method"]: milliseconds(row["comm_s"]) for row in rows}
        sides = [(name or "", taken.get(name or "", "")) for name in summary.fastest[size]]
        answered = summary.answers[size]
        verdict = (columns.speedup(answered), answered["verdict"]) if answered else ("", "nothing to compare")
        cells.append([text.size(size), *sides[0], *sides[1], *verdict, _wrong(rows)])
    headers = ["fp32 size", "fastest vote", "vote ms", "fastest rival", "rival ms", f"rival / vote [{ALL_ROWS}]",
               "verdict on the vote", "wrong"]  # fmt: skip
    return Part("The fastest vote against the fastest rival, by the size of the vector:", headers, cells)


def _breakdown(shown: Phases, *, overlaps: bool, wide: bool) -> Part:
    if_so = " if nothing overlaps" if overlaps else ""
    median = "the median of such an iteration" if overlaps else "the iteration above"
    names = "" if wide else " (gradient: data, forward, backward; coding: pack, vote, unpack; wire: collectives)"
    caption = (
        f"Where the time of an iteration goes{if_so}, ms: parts that add up to {median}. They are means over ranks; "
        f"{IMBALANCE} is what the slowest rank takes longer than the mean{names}."
    )
    return _phases(caption, shown, wide=wide)


def _overlapped_breakdown(shown: Phases, *, wide: bool) -> Part:
    caption = (
        f"Where the time of an overlapped iteration goes, ms: parts up to {IMBALANCE}, which add up to the iteration "
        "above; after it a vote's exchange, in its thread, in backward; a rival's is not told apart from backward."
    )
    return _phases(caption, shown, wide=wide)


def _phases(caption: str, shown: Phases, *, wide: bool) -> Part:
    shown = shown if wide else phases.condensed(shown)

    def part(name: str) -> Callable[[Row], str]:
        return lambda row: milliseconds(row[name]) if row[name] else ""

    parts_of: Columns = {"method": lambda row: row["method"], **{name: part(name) for name in shown.names}}
    return _filled(caption, parts_of, shown.rows)


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
