"""What a sweep over sizes says: at which of them the fastest vote is faster than the fastest rival."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from . import text
from .rows import Row

Answers = Mapping[int | None, Row | None]  # by size, in rising order; None where no vote or no rival was right

_UNTOLD = "without a vote and a rival that were right"
_AT = {  # by verdict: what the vote is at a size
    "faster": "faster at",
    "slower": "slower at",
    "indistinguishable": "indistinguishable at",
    "within noise": "within noise of sending nothing at",
    "too few samples": "with too few samples for a verdict at",
    _UNTOLD: f"{_UNTOLD} at",
}
_UNCLEAR = ("indistinguishable", "within noise", "too few samples", "slower")  # what a sweep is called, the first of it


def crossover(answers: Answers) -> tuple[str, str]:
    """Return a verdict on all sizes, and the words behind it: from which size on the fastest vote is faster.

    It is "faster" or "slower" if the vote is, at every size; "some" if it is faster at some of them; else why it can't
    be told.
    """
    verdicts = {size: answer["verdict"] if answer else _UNTOLD for size, answer in answers.items() if size}
    found = set(verdicts.values())
    if "faster" in found:
        return "faster" if len(found) == 1 else "some", _said(verdicts)
    return next((one for one in _UNCLEAR if one in found), "indistinguishable"), _said(verdicts)


def _said(verdicts: Mapping[int, str]) -> str:
    sizes = list(verdicts)
    faster = [size for size in sizes if verdicts[size] == "faster"]
    on = next(at for at in range(len(sizes), -1, -1) if at == 0 or verdicts[sizes[at - 1]] != "faster")
    above, below = sizes[on:], sizes[:on]
    vote_is, rest = "the fastest vote is faster than the fastest rival", _told(below, verdicts)
    if not below:
        return f"at every size measured, {span(sizes)}, {vote_is}."
    if above:
        where = f"from {text.size(above[0])} on" if above[1:] else "at the largest size alone"
        said = f"{where}, {vote_is} at {_each(above)}; below that it is {rest}."
        slower = [size for size in below if verdicts[size] == "slower"]
        if slower and len(faster) == len(above):
            said += f" The crossover lies between {text.size(slower[-1])} and {text.size(above[0])}."
        return said
    if faster:
        return f"not at the largest: held against the fastest rival, the fastest vote is {rest}."
    return f"it is faster at no size measured: held against the fastest rival, the fastest vote is {rest}."


def _told(sizes: Sequence[int], verdicts: Mapping[int, str]) -> str:
    """Say what the vote is at which of these sizes: neighbours alike as a span, spans alike together."""
    spans: dict[str, list[str]] = {}
    for verdict, alike in groupby(sizes, key=verdicts.__getitem__):
        spans.setdefault(verdict, []).append(span(list(alike)))
    return ", ".join(f"{_AT[verdict]} {' and '.join(found)}" for verdict, found in spans.items())


def span(sizes: Sequence[int]) -> str:
    """Return the first and the last of sizes in rising order."""
    return text.size(sizes[0]) if len(sizes) == 1 else f"{text.size(sizes[0])} to {text.size(sizes[-1])}"


def _each(sizes: Sequence[int]) -> str:
    return text.size(sizes[0]) if len(sizes) == 1 else f"each size from {span(sizes)}"
