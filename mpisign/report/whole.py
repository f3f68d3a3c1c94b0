"""Whether the samples of a record are whole: each method's, of each iteration, from each rank, once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Line = dict[str, Any]

FIRST = 2  # the number of the line that has the first sample
SHORTEST = 1e-9  # seconds: no clock tells less


class Group(NamedTuple):
    """The lines of one type, size (None without one) and method ("" without one)."""

    type: str
    size: int | None
    method: str

    def __str__(self) -> str:
        size = "" if self.size is None else f" of {self.size} bytes"
        return f"{self.type}{self.method and ' by '}{self.method}{size}"


def check(head: Mapping[str, Any], samples: Sequence[Line]) -> None:
    """Hold the samples of a record against its first line, each of them being as `schema.check_line` wants it.

    Raises:
        ValueError: a sample is of no rank, method or size of the run, comes twice, or is missing; the text begins with
            the line if it is one's fault.

    """
    groups: dict[Group, list[int]] = defaultdict(list)
    for at, line in enumerate(samples):
        groups[line["type"], line.get("bytes"), line.get("method", "")].append(at)  # type: ignore[index]
    P, expected = head["machine"]["ranks"], _expected(head)
    counts = {}
    for key, places in groups.items():
        group = Group(*key)
        _check_belongs(group, places[0], head, expected)
        iteration, rank = (_column(samples, places, name) for name in ("iteration", "rank"))
        beyond = np.flatnonzero(rank >= P)
        if beyond.size:
            at = places[beyond[0]]
            raise _fault(at, f"rank: {samples[at]['rank']}, but there are {P} ranks")
        if group.type != "span":
            counts[group] = _rounds(group, places, iteration, rank, P)
    _check_counts(head, expected, counts)


def _expected(head: Mapping[str, Any]) -> list[Group]:
    """Return which groups a record has, without its time line."""
    config = head["config"]
    timed = ["exchange", *(["overlapped"] if config["schedule"] == "overlap" else [])]
    own = [] if config["sizes"] else [Group("compute", None, "")]
    return own + [Group(kind, size, method) for kind in timed for size in config["sizes"] or [None]
                  for method in head["methods"]]  # fmt: skip


def _check_belongs(group: Group, at: int, head: Mapping[str, Any], expected: Sequence[Group]) -> None:
    """Raise a ValueError if a group is none of the run's; `at` is the place of its first line."""
    if group.method and group.method not in head["methods"]:
        raise _fault(at, f"method: {group.method!r:.80} is not among the methods of the first line")
    if group.type != "span" and group not in expected:
        raise _fault(at, f"{group}: the run has no such samples, by its config")


def _rounds(group: Group, places: Sequence[int], iteration: NDArray[Any], rank: NDArray[Any], P: int) -> int:
    """Return how many iterations a group has: all from 0 on, each of all P ranks, once."""
    far = np.flatnonzero(iteration >= len(places))  # more than there are lines: then one before it is missing
    order = np.lexsort((rank, np.minimum(iteration, len(places))))
    codes = (np.minimum(iteration, len(places)) * P + rank)[order]
    twice = np.flatnonzero(codes[1:] == codes[:-1])
    if twice.size and not far.size:
        at = places[int(order[twice[0] + 1])]
        raise _fault(at, f"{group}: iteration {codes[twice[0]] // P} of rank {codes[twice[0]] % P} comes twice")
    gaps = np.flatnonzero(codes != np.arange(len(codes)))
    missing = gaps[0] if gaps.size else len(codes) if len(codes) % P else None
    if missing is not None:
        raise ValueError(f"{group}: has no line of iteration {missing // P}, rank {missing % P}")
    return len(codes) // P


def _check_counts(head: Mapping[str, Any], expected: Sequence[Group], counts: Mapping[Group, int]) -> None:
    """Raise a ValueError if a group is missing, or the methods of a size have not as many iterations."""
    rounds: dict[int | None, tuple[Group, int]] = {}
    for group in expected:
        if group not in counts:
            raise ValueError(f"{group}: has no lines")
        block = head["block"] if group.type == "overlapped" else 1
        first, count = rounds.setdefault(group.size, (group, counts[group]))
        if counts[group] != count * block:
            raise ValueError(f"{group}: has {counts[group]} iterations, but {first} has {count}"
                             + (f", in blocks of {block}" if block > 1 else ""))  # fmt: skip


def _column(samples: Sequence[Line], places: Sequence[int], name: str) -> NDArray[np.int64]:
    return np.fromiter((samples[at][name] for at in places), np.int64, len(places))


def _fault(at: int, said: str) -> ValueError:
    return ValueError(f"line {at + FIRST}: {said}")
