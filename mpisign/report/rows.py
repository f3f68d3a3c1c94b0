"""A run's record as rows: what is in the tables, as numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .records import Run
from .statistics import Median, median_interval, verdict

Row = dict[str, Any]
Lines = Sequence[dict[str, Any]]

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


def grouped(lines: Iterable[dict[str, Any]], key: str) -> dict[Any, list[dict[str, Any]]]:
    """Return the lines by what they have under `key`."""
    groups: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        groups[line[key]].append(line)
    return groups


def _column(lines: Lines, name: str) -> NDArray[np.float64]:
    """Return what each line has under `name`, 0 where it has nothing."""
    return np.fromiter(map(dict.get, lines, repeat(name), repeat(0.0)), float, len(lines))


def _places(lines: Lines) -> NDArray[np.intp]:
    """Return which of the iterations, in order, each line belongs to."""
    return np.unique(_column(lines, "iteration"), return_inverse=True)[1]


def _slowest(lines: Lines, names: Sequence[str]) -> NDArray[np.float64]:
    """Return one sample an iteration: the seconds under those names of its slowest rank."""
    places = _places(lines)
    samples = np.zeros(places.max(initial=-1) + 1)
    np.maximum.at(samples, places, sum(_column(lines, name) for name in names))
    return samples


def compute_samples(run: Run) -> NDArray[np.float64]:
    """Return the seconds of an iteration's own work, the slowest rank's; a single 0 in a sweep, which has none."""
    lines = run.by_method("compute")
    return _slowest(lines[None], COMPUTE_SPANS) if lines else np.zeros(1)


def comm_samples(run: Run, size: int | None = None) -> dict[str, NDArray[np.float64]]:
    """Return each method's samples of the exchange in seconds, the slowest rank's, one an iteration."""
    return _samples(run, "exchange", size)


def overlapped_samples(run: Run) -> dict[str, NDArray[np.float64]]:
    """Return each method's samples of a whole overlapped iteration in seconds, the slowest rank's."""
    return _samples(run, "overlapped")


def iteration_samples(run: Run, size: int | None = None) -> dict[str, NDArray[np.float64]]:
    """Return each method's samples of a whole iteration in seconds, under the run's schedule; in a sweep, of comm."""
    return overlapped_samples(run) or _iterations(run, comm_samples(run, size))


def _iterations(run: Run, comm: dict[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    compute = compute_samples(run)
    return {method: compute + samples for method, samples in comm.items()}


def _samples(run: Run, kind: str, size: int | None = None) -> dict[str, NDArray[np.float64]]:
    return {str(method): _slowest(lines, ("seconds",)) for method, lines in run.by_method(kind, size).items()}


def iterations(run: Run) -> tuple[int, int]:
    """Return how many iterations were measured: in a sweep the fewest and the most of any size."""
    ranks = run.head["machine"]["ranks"]
    kind = "overlapped" if run.overlapped else "exchange"
    sizes = run.head["config"]["sizes"] or [None]
    counts = [len(lines) // ranks for size in sizes for lines in run.by_method(kind, size).values()]
    return min(counts), max(counts)


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
    head, against = run.head, _Against(run, size)
    wrong, compute = _wrong(run, size), float(np.median(compute_samples(run)))
    found = []
    for method in head["methods"]:
        exchange, iteration = median_interval(against.comm[method]), float(np.median(against.iterations[method]))
        row: Row = {
            "method": method,
            "baseline": head["baseline"],
            "compute_s": compute,
            "comm_s": exchange.median,
            "comm_low_s": exchange.low,
            "comm_high_s": exchange.high,
            "iteration_s": iteration,
            "images_per_s": _images(run) / iteration if size is None else None,
            **_traffic(run, size, method),
            **against.row(method),
            "wrong": wrong[method],
        }
        found.append(({"bytes": size} if size else {}) | row)
    return found


def _overlapped_rows(run: Run) -> list[Row]:
    head, against, wrong = run.head, _Against(run), _wrong(run)
    iterations, alone = against.iterations, {name: float(np.median(comm)) for name, comm in against.comm.items()}
    ceiling = next((name for name, kind in run.kinds.items() if kind == "ceiling"), "")
    found = []
    for method in head["methods"]:
        iteration = median_interval(iterations[method])
        exposed = None
        if ceiling in iterations and method != ceiling:
            exposed = median_interval(iterations[method] - iterations[ceiling])
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


def _wrong(run: Run, size: int | None = None) -> dict[str, int | None]:
    """Return the most wrong coordinates that an exchange of each method had; None for a ceiling."""
    found: dict[str, int | None] = {}
    for kind in ("exchange", "overlapped"):
        for method, lines in run.by_method(kind, size).items():
            most = max(line["wrong"] for line in lines)
            found[str(method)] = None if run.kinds[str(method)] == "ceiling" else max(most, found.get(str(method)) or 0)
    return found


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
        self.baseline, self.kinds = run.head["baseline"], run.kinds
        self.comm = comm_samples(run, size)
        self.iterations = overlapped_samples(run) or _iterations(run, self.comm)
        faulty = [method for method, wrong in _wrong(run, size).items() if wrong]
        self.medians = {
            method: float(np.median(samples)) for method, samples in self.iterations.items()
            if self.kinds[method] != "ceiling" and method not in faulty
        }  # fmt: skip
        self.votes = [method for method in self.medians if self.kinds[method] == "vote"]
        rivals = [method for method in self.medians if self.kinds[method] == "rival"]
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
            row["verdict"] = self._place(method, self.baseline, "baseline") or said
            if self.kinds[method] != "ceiling":
                row["comm_ratio"] = float(np.median(self.comm[self.baseline] / self.comm[method]))
        if self.rival is not None:
            found, said = self.speedup(self.rival, method)
            row |= dict(zip(_AGAINST_RIVAL, (self.rival, *found, said), strict=True))
            row["rival_verdict"] = self._place(method, self.rival, "fastest rival") or said
        return row

    def _place(self, method: str, other: str, name: str) -> str | None:
        """Return what stands instead of a verdict on `other`, which is called `name`, and on a ceiling."""
        return name if method == other else "ceiling" if self.kinds[method] == "ceiling" else None


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
    groups = run.by_method("overlapped")
    names = [*COMPUTE_SPANS, *phases(chain.from_iterable(groups.values()))]
    return names, [{"method": method, **_means(groups[method], names)} for method in run.head["methods"]]


def breakdown(run: Run) -> tuple[list[str], list[Row]]:
    """Return the phases of an iteration and a row for each method: seconds, mean over ranks, median over iterations.

    "other" is what no span names: all of a baseline's exchange, little of a vote's.
    """
    compute, groups = run.by_method("compute")[None], run.by_method("exchange")
    present = {method: phases(lines) for method, lines in groups.items()}
    names = _in_order(chain.from_iterable(present.values()))
    own = np.sum([_column(compute, name) for name in COMPUTE_SPANS if name != "step"], axis=0)
    shared = {"compute": _typical(_places(compute), own), **_means(compute, ["step"])}
    nothing = dict.fromkeys(names, 0.0)
    return ["compute", *names, "step", "other"], [
        {"method": method, **shared, **nothing, **_means(groups[method], present[method], "other")}
        for method in run.head["methods"]
    ]


def phases(lines: Iterable[dict[str, Any]]) -> list[str]:
    """Return the spans of exchanges: wait and pack first, vote and unpack last, collectives between them."""
    seen: set[str] = set().union(*lines)
    return _in_order(seen - {*FACTS_OF_A_LINE, *COMPUTE_SPANS})


def _in_order(names: Iterable[str]) -> list[str]:
    seen = set(names)
    collectives = sorted(seen - {"wait", *CODING_SPANS})
    return [name for name in ("wait", "pack", *collectives, "vote", "unpack") if name in seen]


def _means(lines: Lines, names: Iterable[str], rest: str | None = None) -> Row:
    """Return the typical seconds under each name, and as `rest` what of an exchange's seconds is under none."""
    places, columns = _places(lines), {name: _column(lines, name) for name in names}
    if rest:
        columns[rest] = _column(lines, "seconds") - sum(columns[name] for name in columns if name != "wait")
    return {name: _typical(places, column) for name, column in columns.items()}


def _typical(places: NDArray[np.intp], seconds: NDArray[np.float64]) -> float:
    """Return the median over iterations of the mean over ranks."""
    return float(np.median(np.bincount(places, seconds) / np.bincount(places)))


def share_of_spans(run: Run) -> float:
    """Return what share of the shortest iteration of a vote (of any method, without one) its spans take themselves."""
    iterations = iteration_samples(run, min(run.head["config"]["sizes"], default=None))
    votes = [samples for method, samples in iterations.items() if run.kinds[method] == "vote"]
    shortest = min(float(np.median(samples)) for samples in votes or iterations.values())
    measuring = run.end["measuring"]
    return float(measuring["spans_per_iteration"] * measuring["span_s"] / shortest)
