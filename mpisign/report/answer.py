"""The answer for those who decide: whether the vote pays, in plain words, and what limits it.

Terminal and page say the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from . import sweep, text
from .notes import CROWDED, remarks
from .records import Run
from .rows import Row, enough_rounds
from .statistics import Median
from .summary import Summary

QUESTION = "Does it pay here?"
WORDS = {  # by verdict, which is also the class of the box
    "faster": "Yes",
    "some": "At some sizes",
    "slower": "No",
    "indistinguishable": "Can't tell",
    "noise": "Can't tell",
    "few": "Can't tell",
    "wrong": "Wrong results",
    "none": "No answer",
}
KEYS: dict[str, str] = {"within noise": "noise", "too few samples": "few"}  # of WORDS, by a verdict that is none


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
    """Return whether the vote pays in a run, in words. A run that lacks a side has none to give."""
    verdict, said = _judged(summary)
    if wrong := _wrong(summary):
        verdict, said = "wrong", wrong + (f" Of the others: {WORDS[verdict]}: {said}" if verdict != "none" else "")
    return Answer(verdict, said, limits(summary))


def answer_line(summary: Summary) -> str:
    """Return the line that says whether the vote pays here; for a sweep, at which sizes."""
    said = answer(summary)
    return f"{QUESTION} {said.word}: {said.text}"


def _judged(summary: Summary) -> tuple[str, str]:
    """Return a key of WORDS and the sentences behind it, of all methods without a wrong result."""
    run, row = summary.run, summary.answer
    if not any(summary.answers.values()):
        return "none", "to tell needs a vote and a rival, both without a wrong result."
    came_to, said = sweep.crossover(summary.answers) if row is None else (row["verdict"], "")
    verdict = KEYS.get(came_to, came_to)
    if row is None:
        return verdict, said
    when = "beside backward" if summary.overlaps else "once backward is done"
    took = (
        f"with the fastest one-bit exchange ({row['vote']}), {when}, an iteration takes "
        f"{text.milliseconds(row['vote_s'])} ms, "
        f"with the fastest rival ({row['rival']}) {text.milliseconds(row['rival_s'])} ms"
    )
    if verdict == "few":
        enough = enough_rounds(run) * run.head["block"]
        return verdict, f"{took}, but there are too few samples. To find out: more iterations, at least {enough}."
    return verdict, f"{took}{_compared(row)}"


def _compared(row: Row) -> str:
    """Return what follows on the two times, by the verdict."""
    found, low, high = text.ratios(Median(row["speedup"], row["speedup_low"], row["speedup_high"]))
    times = f"{found} times as fast, pair by pair (between {low} and {high} with 95 % confidence)"
    if row["verdict"] == "within noise":
        return ", but neither takes longer than sending nothing: the difference is within noise of the ceiling."
    if row["verdict"] == "faster":
        noise = " It takes no longer than sending nothing: what it costs is within noise of the ceiling."
        return f": it is {times}.{noise * row['at_ceiling']}"
    if row["verdict"] == "slower":
        return f": it is slower, {times}."
    why = "the difference may be chance"
    if row["opposed"]:
        why = "the medians and the paired samples point different ways"
    return f", but {why}: {times}. To find out: more iterations, as by --until 0.02."


def smallest_line(summary: Summary) -> str:
    """Return the line that says how small a difference such a run finds; nothing where there is nothing to hold."""
    between = _from_to(summary.smallest_answers, by="size"), "between the fastest vote and the fastest rival"
    from_baseline = _from_to(summary.smallest, by="row"), "from the baseline"
    if not (summary.smallest_answers or summary.smallest):
        return ""
    told = [f"{shares} {where}" for shares, where in (between, from_baseline) if shares]
    if not told:
        return "What this run could find: no difference, however large, with so few samples."
    if_so = ", were its samples independent" if summary.overlaps else ""  # which blocks seem not to be, quite
    return (
        f"What this run could find{if_so}: in most such runs a difference of "
        f"{' and of '.join(told)} is told from none. "
        'A smaller one may well be there: "indistinguishable" does not mean equal.'
    )


def _from_to(shares: Iterable[float], *, by: str) -> str:
    """Return the first and the last of shares in rising order that are finite; nothing without any."""
    found = [text.percent(share) for share in shares if math.isfinite(share)]
    if not found:
        return ""
    return found[0] if found[0] == found[-1] else f"{found[0]} to {found[-1]}, by {by},"


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
    if summary.is_sweep:
        plain.append(f"Bare vectors of {sweep.span(config['sizes'])} bytes: no model was trained.")
    if ranks == 1:
        plain.append("One rank: there was nobody to exchange with.")
    elif machine["nodes"] == 1:
        plain.append("One machine: nothing went over a network, and this says nothing about one.")
    if not summary.is_sweep:
        if not summary.overlaps and ranks > 1:
            plain.append(
                "Every exchange waits until backward is done, which DDP's own does not: --schedule overlap measures "
                "what training would see."
            )
        if not config["data"]:
            plain.append("Made-up pictures: what it takes to read real ones is not in these times.")
        plain.append("The time of an iteration, not of a training: with one bit it may take more of them to learn.")
    return [*(Limit(one, warning=True) for one in said), *(Limit(one, warning=False) for one in plain)]


def _ranks(run: Run) -> int:
    return int(run.head["machine"]["ranks"])
