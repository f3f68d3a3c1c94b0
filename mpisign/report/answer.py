"""The answer for those who decide: whether the vote pays, in plain words, and what limits it."""

from __future__ import annotations

from typing import NamedTuple

from . import table, text
from .notes import CROWDED, remarks
from .records import Run
from .rows import Row, enough_rounds
from .statistics import Median
from .summary import Summary

WORDS = {  # by verdict, which is also the class of the box
    "faster": "Yes",
    "slower": "No",
    "indistinguishable": "Can't tell",
    "few": "Can't tell",
    "wrong": "Wrong results",
    "none": "No answer",
    "sweep": "The exchange alone",
}


class Limit(NamedTuple):
    """What keeps an answer from being true elsewhere or later, and whether it is a warning."""

    text: str
    warning: bool


class Answer(NamedTuple):
    """What the box says: a key of WORDS, the sentences behind its word, and what limits them."""

    verdict: str
    text: str
    limits: list[Limit]

    @property
    def word(self) -> str:
        """What it comes to, in a word or two."""
        return WORDS[self.verdict]


def answer(summary: Summary) -> Answer:
    """Return whether the vote pays in a run, in words. A sweep, or a run that lacks a side, has none to give."""
    verdict, said = _judged(summary)
    if wrong := _wrong(summary):
        verdict, said = "wrong", wrong + (f" Of the others: {WORDS[verdict]}: {said}" if verdict != "none" else "")
    return Answer(verdict, said, limits(summary))


def _judged(summary: Summary) -> tuple[str, str]:
    """Return a key of WORDS and the sentences behind it, of all methods without a wrong result."""
    run, row = summary.run, summary.answer
    if summary.is_sweep:
        sizes = list(map(text.size, run.head["config"]["sizes"]))
        between = sizes[0] if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        ranks = "1 rank" if _ranks(run) == 1 else f"{_ranks(run)} ranks"
        told = f"{ranks} exchanged bare vectors of {between} bytes; no model was trained."
        return "sweep", " ".join(filter(None, (told, table.answer_line(summary))))
    if row is None:
        return "none", "to tell needs a vote and a rival, both without a wrong result."
    took = (
        f"with the fastest one-bit exchange ({row['vote']}) an iteration takes {text.milliseconds(row['vote_s'])} ms, "
        f"with the fastest rival ({row['rival']}) {text.milliseconds(row['rival_s'])} ms"
    )
    if row["verdict"] == "too few samples":
        enough = enough_rounds(run) * run.head["block"]
        return "few", f"{took}, but there are too few samples. To find out: more iterations, at least {enough}."
    return row["verdict"], f"{took}{_compared(row)}"


def _compared(row: Row) -> str:
    """Return what follows on the two times, by the verdict."""
    found, low, high = text.ratios(Median(row["speedup"], row["speedup_low"], row["speedup_high"]))
    times = f"{found} times as fast, pair by pair (between {low} and {high} with 95 % confidence)"
    if row["verdict"] == "faster":
        return f": it is {times}."
    if row["verdict"] == "slower":
        return f": it is slower, {times}."
    why = "the difference may be chance"
    if row["opposed"]:
        why = "the medians and the paired samples point different ways"
    return f", but {why}: {times}. To find out: more iterations, as by --until 0.02."


def _wrong(summary: Summary) -> str:
    """Say which results were wrong; nothing if none was."""
    if summary.run.replicas_differ:
        return "the ranks' copies of the model came to differ, so nothing in this record is to be believed."
    counts = {
        method: max(measured.wrong[method] or 0 for measured in summary.measured.values())
        for method in summary.run.head["methods"]
    }
    told = [f"{method} (up to {count} coordinates in an exchange)" for method, count in counts.items() if count]
    return f"{', '.join(told)}. What is wrong is never called fast." if told else ""


def limits(summary: Summary) -> list[Limit]:
    """Return what limits the answer of a run, the warnings first."""
    run = summary.run
    machine, config = run.head["machine"], run.head["config"]
    said = [remark.text for remark in remarks(summary) if remark.warning]
    ranks, cores, gpus = _ranks(run), machine["cores"], machine.get("gpus", 0)
    if CROWDED in said:
        of_node = "" if machine["nodes"] == 1 else " of a node"
        crowd = f"{cores} core{'s' * (cores > 1)} for {round(machine['ranks_per_core'] * cores)} ranks{of_node}"
        said[said.index(CROWDED)] = f"{CROWDED} ({crowd})"
    if 0 < gpus < ranks:
        said.insert(0, f"{gpus} GPU{'s' * (gpus > 1)} for {ranks} ranks: don't report these times as a cluster's")
    plain = []
    if ranks == 1:
        plain.append("One rank: there was nobody to exchange with.")
    elif machine["nodes"] == 1:
        plain.append("One machine: nothing went over a network, and this says nothing about one.")
    if not summary.is_sweep:
        if not config["data"]:
            plain.append("Made-up pictures: what it takes to read real ones is not in these times.")
        plain.append("The time of an iteration, not of a training: with one bit it may take more of them to learn.")
    return [*(Limit(one, warning=True) for one in said), *(Limit(one, warning=False) for one in plain)]


def _ranks(run: Run) -> int:
    return int(run.head["machine"]["ranks"])
