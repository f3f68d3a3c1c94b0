"""A run's time line as a trace that ui.perfetto.dev and chrome://tracing open: a process a rank, a row a thread.

Trace Event Format: complete events ("X"), times in microseconds; the names of processes and rows are metadata ("M").
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import records

# Rows, from the top: the main thread; a vote's thread; an overlapped baseline's exchange, wherever it runs.
THREADS = ("training", "vote", "exchange")


def export(run: records.Run, path: Path) -> None:
    """Write a run's time line to a file.

    Raises:
        ValueError: the run was not traced.
        OSError: the file could not be written.

    """
    if not run.spans:
        raise ValueError("the record has no time line: measure with mpisign.bench --trace")
    trace = {
        "traceEvents": [*_names(run), *_events(run)],
        "displayTimeUnit": "ms",
        "otherData": {"clock_error_s": run.end["clock_error_s"]},
    }
    records.write(path, [json.dumps(trace, allow_nan=False)])


def _names(run: records.Run) -> Iterator[dict[str, Any]]:
    for rank in sorted({line["rank"] for line in run.spans}):
        yield _metadata("process_name", rank, 0, f"rank {rank}")
        yield _metadata("process_sort_index", rank, 0, rank)
    for rank, row in sorted({(line["rank"], THREADS.index(line["thread"])) for line in run.spans}):
        yield _metadata("thread_name", rank, row, THREADS[row])
        yield _metadata("thread_sort_index", rank, row, row)


def _metadata(kind: str, rank: int, row: int, value: Any) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": rank, "tid": row, "args": {kind.split("_", 1)[1]: value}}


def _events(run: records.Run) -> list[dict[str, Any]]:
    found = [
        {
            "ph": "X", "name": name, "cat": line["of"], "pid": line["rank"], "tid": THREADS.index(line["thread"]),
            "ts": round(1e6 * began, 3), "dur": round(1e6 * seconds, 3),
            "args": {fact: line[fact] for fact in ("method", "iteration", "bytes") if fact in line},
        }
        for line in run.spans
        for name, began, seconds in line["spans"]
    ]  # fmt: skip
    return sorted(found, key=lambda event: (event["ts"], -event["dur"]))  # what encloses comes before what it encloses
