"""Records as one HTML page. It opens from the file system, holds everything it shows, and fetches and runs nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from . import html, table
from .answer import answer, smallest_line
from .looks import KINDS
from .notes import not_run, remarks
from .summary import Summary


def render(
    summaries: Mapping[str, Summary], drawn: Mapping[str, Mapping[str, bytes]], *, together: bytes | None = None
) -> str:
    """Return the page of these runs, by name.

    `drawn` has the SVGs of each record's charts by the record's name and the chart's, `together` that of all of them.
    """
    sections = [
        _section(summary) | {"name": name, "charts": {chart: html.drawing(svg) for chart, svg in drawn[name].items()}}
        for name, summary in summaries.items()
    ]
    scaling = together and html.drawing(together)
    return html.render("page.html", {"pieces": _pieces}, sections=sections, together=scaling, colours=KINDS)


def _section(summary: Summary) -> dict[str, Any]:
    run = summary.run
    return {
        "title": table.title(run),
        "answer": answer(summary),
        "smallest": smallest_line(summary),
        "parts": table.parts(summary),
        "wide": table.parts(summary, wide=True)[1 if summary.is_sweep else 0 :],
        "kinds": run.kinds,
        "notes": [remark.text for remark in remarks(summary) if not remark.warning],
        "not_run": not_run(summary),
        "facts": {
            "What was asked": {name: _plain(value) for name, value in run.asked.items()},
            "The machine": {name: _plain(value) for name, value in run.head["machine"].items()},
            "The run": {
                "record's format": run.head["format"],
                "created": run.head.get("created", ""),
                "baseline": run.head["baseline"] or "",
                "seconds in all": f"{run.end['wall_s']:.0f}",
                "wrong coordinates": run.end["wrong"],
            },
        },
    }


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)


def _pieces(cell: str) -> list[str]:
    """Cut a cell in two lines, one of them for the interval, or for what is behind it."""
    return re.split(r"(?<=\]) " if re.search(r"\] ", cell) else r" (?=\[)", cell, maxsplit=1)
