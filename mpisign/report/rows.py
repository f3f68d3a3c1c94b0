"""The rows of the tables, as numbers: what each method takes, and how it compares with the others."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .records import Run
from .samples import Measured, measured
from .statistics import Median, enough, median_interval, smallest_found, verdict

Row = dict[str, Any]

LOOKING = 2  # a speed-up known to 95 % is looked at until it is narrow: that makes a miss up to half again as likely

_BYTES = ("sent_bytes", "received_bytes", "busiest_bytes")
_AGAINST_RIVAL = ("rival", "rival_speedup", "rival_low", "rival_high", "rival_verdict")
_AGAINST = ("speedup", "speedup_low", "speedup_high", "comm_ratio", "verdict", *_AGAINST_RIVAL)
_RUN = ("model", "ranks", "schedule")  # of the whole run, so that a row stands alone; a sweep has ranks alone
KEYS = ("method", "baseline", "compute_s", "comm_s", "comm_low_s", "comm_high_s", "iteration_s", "images_per_s",
        *_BYTES, *_AGAINST, "wrong", *_RUN)  # fmt: skip
OVERLAP_KEYS = ("method", "baseline", "iteration_s", "iteration_low_s", "iteration_high_s", "exposed_s",
                "exposed_low_s", "exposed_high_s", "comm_s", "hidden", "images_per_s", *_BYTES, *_AGAINST,
                "wrong", *_RUN)  # fmt: skip


class Comparison:
    """Compares the methods of a run with its baseline and with its fastest rival, whichever that is.

    A column's intervals hold for all rows of the run together. Those against the fastest rival hold for each method
    against each rival, so for the one as well that these very samples chose; those against a baseline that was chosen
    with the times known hold against each that could have been.
    """

    def __init__(self, run: Run, samples: Measured) -> None:
        self.baseline, self.kinds, self.samples = run.head["baseline"], run.kinds, samples
        self.replicas_differ = run.replicas_differ  # then none is to be believed, though each exchange seemed right
        self.medians = {
            method: float(np.median(seconds)) for method, seconds in samples.iteration.items()
            if self.kinds[method] != "ceiling" and not samples.wrong[method] and not run.replicas_differ
        }  # fmt: skip
        self.ceiling = min((float(np.median(seconds)) for method, seconds in samples.iteration.items()
                            if self.kinds[method] == "ceiling"), default=-math.inf)  # fmt: skip
        self.vote = self._fastest("vote")
        self.rival = self._fastest("rival")
        self.with_baseline, self.with_rivals = together(run), together(run, rivals(run))

    def _fastest(self, kind: str) -> str | None:
        methods = (method for method in self.medians if self.kinds[method] == kind)
        return min(methods, key=self.medians.__getitem__, default=None)

    def speedup(self, other: str, method: str, *, together: int) -> Median:
        """Return the median of other / method over the paired samples, and its interval, one of so many."""
        iteration = self.samples.iteration
        return median_interval(iteration[other] / iteration[method], together)

    def row(self, method: str) -> Row:
        """Return _AGAINST of a method."""
        row: Row = dict.fromkeys(_AGAINST)
        if self.baseline is not None:
            ratio = self.speedup(self.baseline, method, together=self.with_baseline)
            row |= dict(zip(_AGAINST, ratio, strict=False))
            row["verdict"] = self._judge(method, ratio, other=self.baseline, role="baseline")
            if self.kinds[method] != "ceiling":
                comm = self.samples.comm
                row["comm_ratio"] = float(np.median(comm[self.baseline] / comm[method]))
        if self.rival is not None:
            ratio = self.speedup(self.rival, method, together=self.with_rivals)
            judged = self._judge(method, ratio, other=self.rival, role="fastest rival")
            row |= dict(zip(_AGAINST_RIVAL, (self.rival, *ratio, judged), strict=True))
        return row

    def _judge(self, method: str, speedup: Median, *, other: str, role: str) -> str:
        """Return the verdict on a method, or what stands in its place; `role` is what the other method is."""
        if self.kinds[method] == "ceiling":
            return "ceiling"
        if self.samples.wrong[method] or self.replicas_differ:
            return "wrong"
        if method == other:
            return role
        if self.samples.wrong[other]:
            return f"{role} is wrong"
        held = self.with_baseline if role == "baseline" else self.with_rivals
        judged = verdict(speedup, len(self.samples.iteration[method]), together=held)
        if judged in ("faster", "slower"):
            if self.at_ceiling(method) and self.at_ceiling(other):
                return "within noise"
            if self._opposed(method, speedup, other=other):
                return "indistinguishable"
        return judged

    def at_ceiling(self, method: str) -> bool:
        """Tell whether a method took no longer than the ceiling, which sends nothing: its exchange is within noise."""
        return self.medians.get(method, math.inf) <= self.ceiling

    def _opposed(self, method: str, speedup: Median, *, other: str) -> bool:
        """Tell whether the ratio of the medians and the median of the ratios point different ways."""
        return (self.medians[other] - self.medians[method]) * (speedup.median - 1) < 0

    def answer(self) -> Row | None:
        """Compare the fastest vote with the fastest rival, as the vote's row does; return None without both.

        The row has vote, rival, their medians of an iteration, the speed-up of paired samples, its interval, and the
        verdict. `opposed` says that medians and ratios point different ways: then the two are indistinguishable.
        `at_ceiling` says that the vote took no longer than the ceiling; if both did, they are "within noise".
        """
        if self.vote is None or self.rival is None:
            return None
        vote, rival = self.medians[self.vote], self.medians[self.rival]
        speedup = self.speedup(self.rival, self.vote, together=self.with_rivals)
        judged = self._judge(self.vote, speedup, other=self.rival, role="fastest rival")
        return {
            "vote": self.vote, "rival": self.rival, "vote_s": vote, "rival_s": rival,
            **dict(zip(("speedup", "speedup_low", "speedup_high"), speedup, strict=True)),
            "verdict": judged,
            "opposed": self._opposed(self.vote, speedup, other=self.rival),
            "at_ceiling": self.at_ceiling(self.vote),
        }  # fmt: skip

    def smallest(self) -> dict[str, float]:
        """Return the smallest difference that would be found by each verdict there can be, as a share, by method.

        It is of the rows against the baseline. "" is that of the answer. With too few samples it is infinite.
        """
        against: dict[str, tuple[str, str, int]] = {}
        if self.baseline in self.medians:
            others = (method for method in self.medians if method != self.baseline)
            against = {method: (self.baseline, method, self.with_baseline) for method in others}
        if self.vote is not None and self.rival is not None:
            against[""] = self.rival, self.vote, self.with_rivals
        return {
            name: smallest_found(self.speedup(other, method, together=held), held)
            if len(self.samples.iteration[method]) >= enough(held) else math.inf
            for name, (other, method, held) in against.items()
        }  # fmt: skip


def rivals(run: Run) -> int:
    """Return how many rivals a run has."""
    return sum(kind == "rival" for kind in run.kinds.values())


def together(run: Run, against: int | None = None) -> int:
    """Return how many speed-ups of a run are to hold together: of all methods against so many of them, at all sizes.

    By default it is against each method that could have been the baseline.
    Those of a run that looks at its intervals, again and again, until they are narrow, count LOOKING times.
    """
    against = run.baselines if against is None else against
    config, others = run.head["config"], len(run.head["methods"]) - 1
    pairs = against * others - against * (against - 1) // 2
    looks = LOOKING if config.get("until") else 1
    return max(1, looks * max(1, len(config["sizes"])) * pairs)


def enough_rounds(run: Run) -> int:
    """Return the fewest rounds after which each column of a run can have a verdict."""
    return enough(together(run, max(run.baselines, rivals(run))))


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
            **_facts(run),
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
            **_facts(run),
        })  # fmt: skip
    return rows


def _facts(run: Run) -> Row:
    """Return _RUN of a run."""
    facts = run.asked | {"ranks": run.head["machine"]["ranks"]}
    return {name: facts.get(name) for name in _RUN}


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
    """Return how far the interval of any row's speed-up reaches, to its farther side, as a share of it.

    Both columns are looked at. Without any speed-up it is the interval of the iteration itself. It is infinite with too
    few samples.
    """
    comparison, iteration, methods = Comparison(run, samples), samples.iteration, run.head["methods"]
    columns = {comparison.baseline: comparison.with_baseline, comparison.rival: comparison.with_rivals}
    series = [(iteration[other] / iteration[method], held) for other, held in columns.items() if other is not None
              for method in methods] or [(iteration[method], together(run)) for method in methods]  # fmt: skip
    if any(len(one) < enough(held) for one, held in series):
        return math.inf
    intervals = (median_interval(one, held) for one, held in series)
    return max(max(high - median, median - low) / median for median, low, high in intervals)
