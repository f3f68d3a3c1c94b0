"""The columns of a run's table: those that fit a terminal, all of them, and the lines for site suites."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from . import text
from .rows import Row
from .statistics import Median
from .summary import Summary
from .text import milliseconds, ratio

TOGETHER = "95 % for all rows together"
ALL_ROWS = "95 %, all rows"  # the same, where it is narrow
FEW = 3  # digits of an exchange's time in a narrow table

Columns = dict[str, Callable[[Row], Any]]


class Held(NamedTuple):
    """What a narrow table holds the methods against, and where in a row the comparison is."""

    other: str
    speedup: str
    low: str
    high: str
    verdict: str


def held_against(summary: Summary, *, baseline: bool) -> Held | None:
    """Return what the methods are held against: the fastest rival, or else the baseline; None without either.

    `baseline` asks for the baseline.
    """
    rival, chosen = summary.rows[0]["rival"], summary.rows[0]["baseline"]
    if rival is not None and not (baseline and chosen):
        return Held(rival, "rival_speedup", "rival_low", "rival_high", "rival_verdict")
    return Held(chosen, "speedup", "speedup_low", "speedup_high", "verdict") if chosen else None


def narrow(summary: Summary, held: Held | None, *, intervals: bool) -> Columns:
    """Return the columns that answer the question; `intervals` are those of the exchange's time.

    A ceiling's exchange has no time: it sends nothing.
    """
    key, name = ("exposed", "exposed comm ms") if summary.overlaps else ("comm", "comm ms")

    def exchange(row: Row) -> str:
        if row[f"{key}_s"] is None or summary.run.kinds[row["method"]] == "ceiling":
            return ""
        return _seconds(row, key, FEW) if intervals else milliseconds(row[f"{key}_s"], FEW)

    columns: Columns = {
        "method": lambda row: row["method"],
        "iteration ms": lambda row: milliseconds(row["iteration_s"]),
        f"{name} [95 %]" if intervals else name: exchange,
        "MB a rank (busiest)": _megabytes,
    }
    if held is not None:
        columns |= {
            f"speed-up against {held.other} [{ALL_ROWS}]": lambda row: _held(row, held),
            f"verdict against {held.other}": lambda row: row[held.verdict] or "",
        }
    return columns | {"wrong": _wrong}


def _megabytes(row: Row) -> str:
    """Return what a typical rank sends or receives, whichever is more; in brackets the busiest, if that is more."""
    typical, busiest = map(text.megabytes, (max(row["sent_bytes"], row["received_bytes"]), row["busiest_bytes"]))
    return typical if typical == busiest else f"{typical} ({busiest})"


def _held(row: Row, held: Held) -> str:
    """Return a speed-up; nothing where the verdict says that there is none, or none but 1."""
    if row[held.speedup] is None or row["method"] == held.other or str(row[held.verdict]).endswith("wrong"):
        return ""
    return text.ratio_and_interval(Median(row[held.speedup], row[held.low], row[held.high]))


def _wrong(row: Row) -> str:
    return "" if row["wrong"] is None else text.count(row["wrong"])


def _seconds(row: Row, key: str, digits: int = text.DIGITS) -> str:
    """Return a time of a row with its interval, as milliseconds; nothing where the row has none."""
    if row[f"{key}_s"] is None:
        return ""
    middle = Median(row[f"{key}_s"], row[f"{key}_low_s"], row[f"{key}_high_s"])
    return text.milliseconds_and_interval(middle, digits)


def comm(row: Row) -> str:
    """Return the exchange's time with its interval."""
    return _seconds(row, "comm")


def speedup(row: Row) -> str:
    """Return the speed-up against the baseline, or of an answer, with its interval; nothing without one."""
    if row["speedup"] is None:
        return ""
    return text.ratio_and_interval(Median(row["speedup"], row["speedup_low"], row["speedup_high"]))


def _against_rival(row: Row) -> str:
    if row["rival_speedup"] is None or row["rival_verdict"] in ("fastest rival", "ceiling", "wrong"):
        return row["rival_verdict"] or ""
    rival = Median(row["rival_speedup"], row["rival_low"], row["rival_high"])
    return f"{text.ratio_and_interval(rival)} {row['rival_verdict']}"


_BYTES: Columns = {
    "images/s": lambda row: ratio(row["images_per_s"]),
    "sent MB": lambda row: text.megabytes(row["sent_bytes"]),
    "received MB": lambda row: text.megabytes(row["received_bytes"]),
    "busiest rank MB": lambda row: text.megabytes(row["busiest_bytes"]),
    f"speed-up of the iteration against the baseline [{TOGETHER}]": speedup,
}
_VERDICT: Columns = {
    "verdict against the baseline": lambda row: row["verdict"] or "",
    f"against the fastest rival [{TOGETHER}]": _against_rival,
    "wrong": _wrong,
}
WIDE: dict[str, Columns] = {  # by schedule
    "serial": {
        "method": lambda row: row["method"],
        "compute ms": lambda row: milliseconds(row["compute_s"]),
        "comm ms [95 % interval]": comm,
        "iteration ms": lambda row: milliseconds(row["iteration_s"]),
        **_BYTES,
        "comm ratio": lambda row: ratio(row["comm_ratio"]),
        **_VERDICT,
    },
    "overlap": {
        "method": lambda row: row["method"],
        "iteration ms [95 % interval]": lambda row: _seconds(row, "iteration"),
        "exposed comm ms [95 % interval]": lambda row: _seconds(row, "exposed"),
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
