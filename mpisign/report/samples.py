"""From the lines of a record to samples: one an iteration and method, its slowest rank's."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .records import Run

Line = dict[str, Any]


class Lines(list[Line]):
    """Lines of one type, size and method, which do not change any more: a column is made once."""

    def __init__(self, lines: Iterable[Line] = ()) -> None:
        super().__init__(lines)
        self._columns: dict[str, NDArray[np.float64]] = {}

    def column(self, name: str) -> NDArray[np.float64]:
        """Return what each line has under `name`, 0 where it has nothing."""
        if name not in self._columns:
            self._columns[name] = np.fromiter(map(dict.get, self, repeat(name), repeat(0.0)), float, len(self))
        return self._columns[name]

    @cached_property
    def places(self) -> NDArray[np.intp]:
        """Return which of the iterations, in order, each line belongs to."""
        return np.unique(self.column("iteration"), return_inverse=True)[1]


Grouped = Mapping[tuple[str, int | None], Mapping[str, Lines]]  # by type and size, then by method
Samples = dict[str, NDArray[np.float64]]  # by method: seconds, one an iteration

COMPUTE_SPANS = ("data", "forward", "backward", "step")
# Everything else is a span. "wait" is the tool's own, before the clock starts.
FACTS_OF_A_LINE = ("type", "iteration", "rank", "method", "bytes", "seconds", "wrong", "wait")


@dataclass(frozen=True)
class Measured:
    """What was measured of a model, or of one size of a sweep: a sample a round.

    `compute` has the samples of an iteration's own work, a single 0 in a sweep. `comm` has those of the exchange, and
    `iteration` those of a whole iteration under the run's schedule (in a sweep they are the same). Of iterations that
    a method has in a row, a block, it is their mean: they resemble each other. `wrong` is the most
    wrong coordinates that an exchange of a method had; None for a ceiling.
    """

    compute: NDArray[np.float64]
    comm: Samples
    iteration: Samples
    wrong: dict[str, int | None]


def grouped(run: Run) -> Grouped:
    """Return the samples of a run by type and size (None without one), and then by method ("" without one)."""
    groups: dict[tuple[str, int | None], dict[str, Lines]] = defaultdict(lambda: defaultdict(Lines))
    for line in run.samples:
        groups[line["type"], line.get("bytes")][line.get("method", "")].append(line)
    return dict(groups)


def measured(run: Run, size: int | None = None, *, groups: Grouped | None = None) -> Measured:
    """Return what a run has measured so far, of one size in a sweep; `groups` is its lines, if they are grouped."""
    groups = grouped(run) if groups is None else groups
    exchanges, overlapped = (groups.get((kind, size), {}) for kind in ("exchange", "overlapped"))
    comm = _by_method(exchanges)
    iteration = {method: blocks(samples, run.head["block"]) for method, samples in _by_method(overlapped).items()}
    compute = compute_samples(groups.get(("compute", None), {}).get("", Lines()))
    if not iteration:
        iteration = {method: compute + samples for method, samples in comm.items()}
    wrong: dict[str, int | None] = {}
    for lines_of in (exchanges, overlapped):
        for method, lines in lines_of.items():
            most = max(_worst(run, method, size=size), int(lines.column("wrong").max()))
            wrong[method] = None if run.kinds[method] == "ceiling" else max(most, wrong.get(method) or 0)
    return Measured(compute, comm, iteration, wrong)


def _worst(run: Run, method: str, *, size: int | None) -> int:
    """Return the most wrong coordinates that a method had where there are no lines: at this size, or at none."""
    kept = [one for one in run.end.get("worst", ()) if one["method"] == method]
    return int(max((one["wrong"] for one in kept if one.get("bytes", size) == size), default=0))


def blocks(samples: NDArray[np.float64], block: int) -> NDArray[np.float64]:
    """Return the mean of each block of so many samples."""
    return np.asarray(samples.reshape(-1, block).mean(axis=1), float)


def _by_method(lines_of: Mapping[str, Lines]) -> Samples:
    return {method: slowest(lines, ("seconds",)) for method, lines in lines_of.items()}


def compute_samples(lines: Lines) -> NDArray[np.float64]:
    """Return the samples of an iteration's own work from the lines "compute"; a single 0 in a sweep, without any."""
    return slowest(lines, COMPUTE_SPANS) if lines else np.zeros(1)


def slowest(lines: Lines, names: Sequence[str]) -> NDArray[np.float64]:
    """Return one sample an iteration: the seconds under those names of its slowest rank."""
    at = lines.places
    samples = np.zeros(at.max(initial=-1) + 1)
    np.maximum.at(samples, at, sum(map(lines.column, names)))
    return samples


def iterations(run: Run) -> tuple[int, int]:
    """Return how many iterations were measured: the fewest and the most of any method, and size in a sweep."""
    kind = "overlapped" if run.head["config"]["schedule"] == "overlap" else "exchange"
    counts = Counter((line.get("bytes"), line["method"]) for line in run.samples if line["type"] == kind)
    ranks = run.head["machine"]["ranks"]
    return min(counts.values()) // ranks, max(counts.values()) // ranks


def in_order(names: Iterable[str]) -> list[str]:
    """Return the spans of an exchange in order: pack first, vote and unpack last, collectives between them."""
    seen = set(names)
    return [name for name in ("pack", *sorted(seen - {"pack", "vote", "unpack"}), "vote", "unpack") if name in seen]


def spans_of(lines: Iterable[Line]) -> list[str]:
    """Return the spans of exchanges that these lines have, in order."""
    seen: set[str] = set().union(*lines)
    return in_order(seen - {*FACTS_OF_A_LINE, *COMPUTE_SPANS})
