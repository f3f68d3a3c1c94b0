"""A run's time line as a trace that ui.perfetto.dev and chrome://tracing open: a process a rank, a row a thread.

Trace Event Format: complete events ("X"), times in microseconds; the names of processes and rows are metadata ("M").
"""

from __future__ import annotations

import argparse
import json
import sys
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


def main(options: argparse.Namespace) -> int:
    """Write the time line of the record given; return the exit code.

    Raises:
        ValueError: the run was not traced.
        OSError: a file could not be read or written.

    """
    export(records.read(options.files[0]), options.trace)
    print(f"mpisign.report: wrote {options.trace}, which opens in https://ui.perfetto.dev", file=sys.stderr)
    return 0


def _names(run: records.Run) -> Iterator[dict[str, Any]]:
    for rank, thread in sorted({(line["rank"], line["thread"]) for line in run.spans}):
        where = _row(run, rank, thread=thread)
        for kind, key, value in (
            ("process_name", "name", f"rank {rank}"),
            ("process_sort_index", "sort_index", rank),
            ("thread_name", "name", thread),
            ("thread_sort_index", "sort_index", THREADS.index(thread)),
        ):
            yield {"ph": "M", "name": kind, **where, "args": {key: value}}


def _row(run: records.Run, rank: int, *, thread: str) -> dict[str, int]:
    """Name a row by numbers: as in an operating system, no two threads of a trace may have the same.

    Perfetto also takes a thread with the number of a process for its main one, and thread 0 for an idle one.
    """
    return {"pid": rank, "tid": int(run.head["machine"]["ranks"]) * (1 + THREADS.index(thread)) + rank}


def _events(run: records.Run) -> list[dict[str, Any]]:
    events = [
        {
            "ph": "X", "name": name, "cat": line["of"], **_row(run, line["rank"], thread=line["thread"]),
            "ts": round(1e6 * began, 3), "dur": round(1e6 * seconds, 3),
            "args": {fact: line[fact] for fact in ("method", "iteration", "bytes") if fact in line},
        }
        for line in run.spans
        for name, began, seconds in line["spans"]
    ]  # fmt: skip
    return sorted(events, key=lambda event: (event["ts"], -event["dur"]))  # what encloses comes before what it encloses
