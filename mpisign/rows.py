"""A run's record as rows: what is in the tables, as numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .records import Run
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
COMPUTE_SPANS = ("data", "forward", "backward", "step")
FACTS_OF_A_LINE = ("type", "iteration", "rank", "method", "bytes", "seconds", "wrong")  # all else is a span
# `wait` comes before the clock starts; every span but these and COMPUTE_SPANS is a collective
CODING_SPANS = ("pack", "vote", "unpack")


def _slowest(lines: Iterable[dict[str, Any]], seconds: Callable[[dict[str, Any]], float]) -> NDArray[np.float64]:
    """Return one sample an iteration: its slowest rank's seconds."""
    samples: dict[int, float] = defaultdict(float)
    for line in lines:
        samples[line["iteration"]] = max(samples[line["iteration"]], seconds(line))
    return np.array([samples[iteration] for iteration in sorted(samples)])


def grouped(lines: Iterable[dict[str, Any]], key: str) -> dict[Any, list[dict[str, Any]]]:
    """Return the lines by what they have under `key`."""
    groups: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        groups[line[key]].append(line)
    return groups


def compute_seconds(line: dict[str, Any]) -> float:
    """Return the seconds of a line of type "compute"."""
    return float(sum(line[name] for name in COMPUTE_SPANS))


def comm_samples(run: Run, size: int | None = None) -> dict[str, NDArray[np.float64]]:
    """Return each method's samples of the exchange in seconds, the slowest rank's, one an iteration."""
    return _samples(line for line in run.exchange if line.get("bytes") == size)


def overlapped_samples(run: Run) -> dict[str, NDArray[np.float64]]:
    """Return each method's samples of a whole overlapped iteration in seconds, the slowest rank's."""
    return _samples(run.overlapped)


def _samples(lines: Iterable[dict[str, Any]]) -> dict[str, NDArray[np.float64]]:
    return {
        method: _slowest(group, lambda line: float(line["seconds"]))
        for method, group in grouped(lines, "method").items()
    }


def iterations(run: Run) -> tuple[int, int]:
    """Return how many iterations were measured: in a sweep the fewest and the most of any size."""
    seen: dict[int | None, set[int]] = defaultdict(set)
    for line in run.overlapped or run.exchange:
        seen[line.get("bytes")].add(line["iteration"])
    counts = [len(found) for found in seen.values()]
    return min(counts), max(counts)


def iteration_samples(run: Run, size: int | None = None) -> dict[str, NDArray[np.float64]]:
    """Return each method's samples of an iteration in seconds; in a sweep the exchange is all there is."""
    if run.overlapped:
        return overlapped_samples(run)
    compute = _slowest(run.compute, compute_seconds) if run.compute else 0.0
    return {method: compute + samples for method, samples in comm_samples(run, size).items()}


def widest(run: Run, size: int | None = None) -> float:
    """Return how far the interval of any row's speed-up reaches to a side, as a share of it.

    Without a baseline it is the interval of the iteration itself.
    """
    samples, baseline = iteration_samples(run, size), run.head["baseline"]
    series = [samples[baseline] / samples[method] if baseline else samples[method] for method in run.head["methods"]]
    return max((high - low) / (2 * median) for median, low, high in map(median_interval, series))


def rows(run: Run) -> list[Row]:
    """Return a row for each method, in the order asked for; for each size, and with `bytes`, in a sweep.

    It has KEYS, or OVERLAP_KEYS under the schedule "overlap".
    """
    config = run.head["config"]
    if config["schedule"] == "overlap":
        return _overlapped_rows(run)
    return [row for size in config["sizes"] or [None] for row in _serial_rows(run, size)]


def _serial_rows(run: Run, size: int | None) -> list[Row]:
    head, comm = run.head, comm_samples(run, size)
    wrong = _wrong(line for line in run.exchange if line.get("bytes") == size)
    compute = float(np.median(_slowest(run.compute, compute_seconds))) if run.compute else 0.0
    iterations, against = iteration_samples(run, size), _Against(run, size)
    found = []
    for method in head["methods"]:
        exchange, iteration = median_interval(comm[method]), float(np.median(iterations[method]))
        row: Row = {
            "method": method,
            "baseline": head["baseline"],
            "compute_s": compute,
            "comm_s": exchange.median,
            "comm_low_s": exchange.low,
            "comm_high_s": exchange.high,
            "iteration_s": iteration,
            "images_per_s": _images(run) / iteration if run.compute else None,
            **_traffic(run, size, method),
            **against.row(method),
            "wrong": wrong[method],
        }
        found.append(({"bytes": size} if size else {}) | row)
    return found


def _overlapped_rows(run: Run) -> list[Row]:
    head, comm, iterations, against = run.head, comm_samples(run), overlapped_samples(run), _Against(run)
    wrong, alone = _wrong([*run.exchange, *run.overlapped]), {name: float(np.median(comm[name])) for name in comm}
    found = []
    for method in head["methods"]:
        iteration = median_interval(iterations[method])
        exposed = None
        if "none" in iterations and method != "none":
            exposed = median_interval(iterations[method] - iterations["none"])
        found.append({
            "method": method,
            "baseline": head["baseline"],
            "iteration_s": iteration.median,
            "iteration_low_s": iteration.low,
            "iteration_high_s": iteration.high,
            "exposed_s": exposed and exposed.median,
            "exposed_low_s": exposed and exposed.low,
            "exposed_high_s": exposed and exposed.high,
            "comm_s": alone[method],
            "hidden": exposed and 1 - exposed.median / alone[method],
            "images_per_s": _images(run) / iteration.median,
            **_traffic(run, None, method),
            **against.row(method),
            "wrong": wrong[method],
        })  # fmt: skip
    return found


def _images(run: Run) -> int:
    """Return the pictures in an iteration of all ranks."""
    return int(run.head["machine"]["ranks"] * run.head["config"]["batch_size"])


def _wrong(lines: Iterable[dict[str, Any]]) -> dict[str, int | None]:
    """Return the most wrong coordinates that an exchange of each method had; None for `none`, which has no result."""
    return {
        method: max(line["wrong"] for line in group) if method != "none" else None
        for method, group in grouped(lines, "method").items()
    }


def _traffic(run: Run, size: int | None, method: str) -> Row:
    sent, received = (np.array(way) for way in run.head["traffic"][str(size or "model")][method])
    return {
        "sent_bytes": float(np.median(sent)),
        "received_bytes": float(np.median(received)),
        "busiest_bytes": int(max(sent.max(), received.max())),
    }


class _Against:
    """Holds the methods of a run against its baseline and against its fastest rival, whichever that is."""

    def __init__(self, run: Run, size: int | None = None) -> None:
        self.baseline, self.comm, self.iterations = (
            run.head["baseline"],
            comm_samples(run, size),
            iteration_samples(run, size),
        )
        faulty = [method for method, wrong in _wrong([*run.exchange, *run.overlapped]).items() if wrong]
        self.medians = {
            method: float(np.median(samples)) for method, samples in self.iterations.items()
            if method != "none" and method not in faulty
        }  # fmt: skip
        self.votes = [method for method in self.medians if method.startswith("vote-")]
        rivals = [method for method in self.medians if method not in self.votes]
        self.rival = min(rivals, key=self.medians.__getitem__, default=None)

    def speedup(self, other: str, method: str) -> tuple[Median, str]:
        """Return the median of other / method over the paired samples, its interval, and the verdict."""
        found = median_interval(self.iterations[other] / self.iterations[method])
        return found, verdict(found, len(self.iterations[method]))

    def row(self, method: str) -> Row:
        """Return _AGAINST of a method."""
        row: Row = dict.fromkeys(_AGAINST)
        if self.baseline is not None:
            found, said = self.speedup(self.baseline, method)
            row |= dict(zip(_AGAINST, found, strict=False))
            row["verdict"] = {self.baseline: "baseline", "none": "ceiling"}.get(method, said)
            if method != "none":
                row["comm_ratio"] = float(np.median(self.comm[self.baseline] / self.comm[method]))
        if self.rival is not None:
            found, said = self.speedup(self.rival, method)
            row |= dict(zip(_AGAINST_RIVAL, (self.rival, *found, said), strict=True))
            row["rival_verdict"] = {self.rival: "fastest rival", "none": "ceiling"}.get(method, said)
        return row


def answer(run: Run, size: int | None = None) -> Row | None:
    """Hold the fastest vote against the fastest rival, whichever they are; None without both.

    Both are chosen by the samples that they are then judged by: the interval does not know of that.

    It has vote, rival, their medians of an iteration, the speed-up of paired samples, its interval, and the verdict.
    """
    against = _Against(run, size)
    if not against.votes or against.rival is None:
        return None
    vote = min(against.votes, key=against.medians.__getitem__)
    (speedup, low, high), said = against.speedup(against.rival, vote)
    return {
        "vote": vote, "rival": against.rival,
        "vote_s": against.medians[vote], "rival_s": against.medians[against.rival],
        "speedup": speedup, "speedup_low": low, "speedup_high": high, "verdict": said,
    }  # fmt: skip


def overlapped_breakdown(run: Run) -> tuple[list[str], list[Row]]:
    """Return the phases of an overlapped iteration and a row for each method, as `breakdown` does.

    Those from "pack" on are the exchange's, in its thread, during backward; a baseline's are not told apart.
    """
    lines = grouped(run.overlapped, "method")
    names = [*COMPUTE_SPANS, *phases(run.overlapped)]
    found = [
        {"method": method}
        | {name: _mean_over_ranks(lines[method], lambda line, name=name: line.get(name, 0.0)) for name in names}  # type: ignore[misc]
        for method in run.head["methods"]
    ]
    return names, found


def breakdown(run: Run) -> tuple[list[str], list[Row]]:
    """Return the phases of an iteration and a row for each method: seconds, mean over ranks, median over iterations."""
    names = ["compute", *phases(run.exchange), "step"]
    compute = _mean_over_ranks(run.compute, lambda line: compute_seconds(line) - line["step"])
    step = _mean_over_ranks(run.compute, lambda line: line["step"])
    found = []
    for method, lines in grouped(run.exchange, "method").items():
        row: Row = {"method": method, "compute": compute, "step": step}
        for name in phases(run.exchange):
            row[name] = _mean_over_ranks(lines, lambda line, name=name: line.get(name, 0.0))  # type: ignore[misc]
        row["other"] = _mean_over_ranks(lines, _unnamed)
        found.append(row)
    order = run.head["methods"]
    return [*names, "other"], sorted(found, key=lambda row: order.index(row["method"]))


def phases(lines: Iterable[dict[str, Any]]) -> list[str]:
    """Return the spans of exchanges: wait and pack first, vote and unpack last, collectives between them."""
    seen = dict.fromkeys(name for line in lines for name in line if name not in (*FACTS_OF_A_LINE, *COMPUTE_SPANS))
    collectives = [name for name in seen if name not in ("wait", *CODING_SPANS)]
    return [name for name in ("wait", "pack", *sorted(collectives), "vote", "unpack") if name in seen]


def _unnamed(line: dict[str, Any]) -> float:
    """Return the seconds of an exchange that no span names: all of a baseline's, little of a vote's."""
    named = sum(value for name, value in line.items() if name not in (*FACTS_OF_A_LINE, "wait"))
    return float(line["seconds"]) - float(named)


def _mean_over_ranks(lines: Iterable[dict[str, Any]], seconds: Callable[[dict[str, Any]], float]) -> float:
    means = [np.mean([seconds(line) for line in group]) for group in grouped(lines, "iteration").values()]
    return float(np.median(means)) if means else 0.0
