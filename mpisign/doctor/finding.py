"""What a check finds, and how it is told: a line for each different fault, with the ranks that it concerns."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .examination import Facts

OK, WARNING, ERROR = "OK", "warning", "error"

Ranks = Sequence[Facts]


@dataclass(frozen=True)
class Finding:
    """What a check finds: one line, with what to do if it is not OK."""

    level: str
    text: str


def those(numbers: Sequence[int], total: int) -> str:
    """Name the ranks that a finding is about, such as " (ranks 3, 5-7)"; nothing where there is but one rank."""
    if total == 1:
        return ""
    if len(numbers) == total:
        return " (all ranks)"
    runs = [
        [number for _, number in run]
        for _, run in itertools.groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0])
    ]
    named = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return f" (rank{'s' if len(numbers) > 1 else ''} {named})"


def each_fault(level: str, ranks: Ranks, say: Callable[[Facts], str | None]) -> list[Finding]:
    """Return a finding for each different text that `say` returns of a rank, with the ranks that it is about."""
    said: dict[str, list[int]] = {}
    for facts in ranks:
        text = say(facts)
        if text:
            said.setdefault(text, []).append(facts.rank)
    return [Finding(level, text + those(numbers, len(ranks))) for text, numbers in said.items()]


def nodes(ranks: Ranks) -> list[list[Facts]]:
    """Return the ranks of each node."""
    grouped: dict[int, list[Facts]] = {}
    for facts in ranks:
        grouped.setdefault(facts.world.node if facts.world else 0, []).append(facts)
    return list(grouped.values())
