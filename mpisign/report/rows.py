"""The rows of the tables, as numbers: what each method takes, and how it compares with the others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .records import Run
from .samples import Measured, measured
from .statistics import Median, median_interval, verdict

Row = dict[str, Any]

_BYTES = ("sent_bytes", "received_bytes", "busiest_bytes")
_AGAINST_RIVAL = ("rival", "rival_speedup", "rival_low", "rival_high", "rival_verdict")
_AGAINST = ("speedup", "speedup_low", "speedup_high", "comm_ratio", "verdict", *_AGAINST_RIVAL)
KEYS = ("method", "baseline", "compute_s", "comm_s", "comm_low_s", "comm_high_s", "iteration_s", "images_per_s",
        *_BYTES, *_AGAINST, "wrong")  # fmt: skip
OVERLAP_KEYS = ("method", "baseline", "iteration_s", "iteration_low_s", "iteration_high_s", "exposed_s",
                "exposed_low_s", "exposed_high_s", "comm_s", "hidden", "images_per_s", *_BYTES, *_AGAINST,
                "wrong")  # fmt: skip


class Comparison:
    """Compares the methods of a run with its baseline and with its fastest rival, whichever that is."""

    def __init__(self, run: Run, samples: Measured) -> None:
        self.baseline, self.kinds, self.samples = run.head["baseline"], run.kinds, samples
        self.medians = {
            method: float(np.median(seconds)) for method, seconds in samples.iteration.items()
            if self.kinds[method] != "ceiling" and not samples.wrong[method]
        }  # fmt: skip
        self.vote = self._fastest("vote")
        self.rival = self._fastest("rival")

    def _fastest(self, kind: str) -> str | None:
        methods = (method for method in self.medians if self.kinds[method] == kind)
        return min(methods, key=self.medians.__getitem__, default=None)

    def speedup(self, other: str, method: str) -> tuple[Median, str]:
        """Return the median of other / method over the paired samples, its interval, and the verdict."""
        iteration = self.samples.iteration
        ratio = median_interval(iteration[other] / iteration[method])
        return ratio, verdict(ratio, len(iteration[method]))

    def row(self, method: str) -> Row:
        """Return _AGAINST of a method."""
        row: Row = dict.fromkeys(_AGAINST)
        if self.baseline is not None:
            ratio, judged = self.speedup(self.baseline, method)
            row |= dict(zip(_AGAINST, ratio, strict=False))
            row["verdict"] = self._role(method, self.baseline, name="baseline") or judged
            if self.kinds[method] != "ceiling":
                comm = self.samples.comm
                row["comm_ratio"] = float(np.median(comm[self.baseline] / comm[method]))
        if self.rival is not None:
            ratio, judged = self.speedup(self.rival, method)
            row |= dict(zip(_AGAINST_RIVAL, (self.rival, *ratio, judged), strict=True))
            row["rival_verdict"] = self._role(method, self.rival, name="fastest rival") or judged
        return row

    def _role(self, method: str, other: str, *, name: str) -> str | None:
        """Return what stands instead of a verdict: `name` where a method meets itself, or "ceiling"."""
        if self.kinds[method] == "ceiling":
            return "ceiling"
        return name if method == other else None

    def answer(self) -> Row | None:
        """Compare the fastest vote with the fastest rival; return None without both.

        Both are chosen by the samples that they are then judged by: the interval does not account for that.

        The row has vote, rival, their medians of an iteration, the speed-up of paired samples, its interval, and the
        verdict.
        """
        if self.vote is None or self.rival is None:
            return None
        (speedup, low, high), judged = self.speedup(self.rival, self.vote)
        return {
            "vote": self.vote, "rival": self.rival,
            "vote_s": self.medians[self.vote], "rival_s": self.medians[self.rival],
            "speedup": speedup, "speedup_low": low, "speedup_high": high, "verdict": judged,
        }  # fmt: skip


def serial_rows(run: Run, comparison: Comparison, *, size: int | None = None) -> list[Row]:
    """Return a row of KEYS for each method, in the order asked for; with `bytes` for a size of a sweep."""
    samples, compute = comparison.samples, float(np.median(comparison.samples.compute))
    rows = []
    for method in run.head["methods"]:
        comm, iteration = median_interval(samples.comm[method]), float(np.median(samples.iteration[method]))
        row: Row = {
            "method": method,
            "baseline": run.head["baseline"],
            "compute_s": compute,
            "comm_s": comm.median,
            "comm_low_s": comm.low,
            "comm_high_s": comm.high,
            "iteration_s": iteration,
            "images_per_s": _images(run) / iteration if size is None else None,
            **_traffic(run, size, method=method),
            **comparison.row(method),
            "wrong": samples.wrong[method],
        }
        rows.append(({"bytes": size} if size else {}) | row)
    return rows


def overlapped_rows(run: Run, comparison: Comparison) -> list[Row]:
    """Return a row of OVERLAP_KEYS for each method, in the order asked for."""
    iterations, wrong = comparison.samples.iteration, comparison.samples.wrong
    alone = {method: float(np.median(comm)) for method, comm in comparison.samples.comm.items()}
    ceiling = next((method for method in run.head["methods"] if run.kinds[method] == "ceiling"), None)
    rows = []
    for method in run.head["methods"]:
        iteration = median_interval(iterations[method])
        exposed = None
        if ceiling is not None and method != ceiling:
            exposed = median_interval(iterations[method] - iterations[ceiling])
        rows.append({
            "method": method,
            "baseline": run.head["baseline"],
            "iteration_s": iteration.median,
            "iteration_low_s": iteration.low,
            "iteration_high_s": iteration.high,
            "exposed_s": exposed and exposed.median,
            "exposed_low_s": exposed and exposed.low,
            "exposed_high_s": exposed and exposed.high,
            "comm_s": alone[method],
            "hidden": exposed and 1 - exposed.median / alone[method],
            "images_per_s": _images(run) / iteration.median,
            **_traffic(run, None, method=method),
            **comparison.row(method),
            "wrong": wrong[method],
        })  # fmt: skip
    return rows


def _images(run: Run) -> int:
    """Return the pictures in an iteration of all ranks."""
    return int(run.head["machine"]["ranks"] * run.head["config"]["batch_size"])


def _traffic(run: Run, size: int | None, *, method: str) -> Row:
    sent, received = (np.array(way) for way in run.head["traffic"][str(size or "model")][method])
    return {
        "sent_bytes": float(np.median(sent)),
        "received_bytes": float(np.median(received)),
        "busiest_bytes": int(max(sent.max(), received.max())),
    }


def widest(run: Run, size: int | None = None) -> float:
    """Return `widest_interval` of what a run has measured so far, of one size in a sweep."""
    return widest_interval(run, measured(run, size))


def widest_interval(run: Run, samples: Measured) -> float:
    """Return how far the interval of any row's speed-up reaches to a side, as a share of it.

    Without a baseline it is the interval of the iteration itself.
    """
    iteration, baseline = samples.iteration, run.head["baseline"]
    series: Iterable[NDArray[np.float64]] = (
        iteration[baseline] / iteration[method] if baseline else iteration[method] for method in run.head["methods"]
    )
    return max((high - low) / (2 * median) for median, low, high in map(median_interval, series))
