"""The log of a training: JSON lines, which outlive a full disk and a killed job.

The first line has type "train": the settings, the method's kind ("vote" or "rival"), the machine and the pictures of
the first start. Each start, the first one too, adds a line of type "start": the checkpoint that it goes on from, how
many epochs and steps were done by then, and `changed`, what is not as it was under the start before, as {name: [before,
now]}. Its lines of type "iteration" and "epoch" follow; steps and epochs are counted from 1. A start cuts those that
came after its checkpoint, and no others.

Formats: in 1 the first line was written anew at each start, and epochs were counted from 0; 2 is the one written here.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ranks import progress
from ..report import records, text

if TYPE_CHECKING:
    from ..voting.ledger import Statistics


FORMAT = 2


# What is read of a line, by its type.
_READ: dict[str, dict[str, type]] = {
    "train": {"config": dict, "machine": dict, "pictures": dict},
    "start": {"changed": dict},
    "iteration": {"step": int},
    "epoch": {"epoch": int},
}


def _parsed(line: str) -> dict[str, Any]:
    """Return a line of JSON; nothing of one that a killed job left half-written, or that is none."""
    try:
        parsed = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _line(text: str) -> dict[str, Any]:
    """Return a line of a log of this format; nothing of what is none."""
    parsed = _parsed(text)
    wanted = _READ.get(str(parsed.get("type")), {})
    if not all(isinstance(parsed.get(name), kind) for name, kind in wanted.items()):
        return {}
    changes = parsed["changed"].values() if "changed" in wanted else ()
    return parsed if all(isinstance(change, list) and len(change) == 2 for change in changes) else {}


def misfit(path: Path) -> str | None:
    """Say why a training can't go on with the log at `path`, or None; None too if there is none."""
    try:
        with path.open(errors="replace") as file:
            head = _parsed(file.readline())
    except FileNotFoundError:
        return None
    except OSError as error:
        return str(error)
    if head.get("type") == "train" and head.get("format") != FORMAT:
        return f"{path} has format {head.get('format')}, not {FORMAT}; move it away, and a new log is begun"
    return None


def _facts(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the settings, the machine's facts and the pictures' by name, as they are behind these lines of a log."""
    facts: dict[str, Any] = {}
    for line in lines:
        if line["type"] == "train":
            facts |= line["config"] | line["machine"] | line["pictures"]
        elif line["type"] == "start":
            facts |= {name: now for name, (_, now) in line["changed"].items()}
    return facts


def of_votes(step: Statistics | None) -> dict[str, Any]:
    """Return what a line tells of the votes of a step; nothing if there were none.

    The least and the most agreement of all ranks are known of the step before.
    """
    if step is None:
        return {}
    shares = [share for share in step.agreements if share is not None]
    return {"votes": {
        "agreement": step.agreement, "least": min(shares, default=None), "most": max(shares, default=None),
        "tied": step.tied, "sent": step.sent, "received": step.received, "exposed": step.seconds["exposed"],
        "absent": step.absent, "nonfinite": step.nonfinite, "apart": step.apart,
    }}  # fmt: skip


class Log:
    """The lines of a run, in `log.jsonl`; on rank 0. What can't be written now, on a full disk, is kept for later."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fault = ""  # why the last line could not be written, or empty
        self._waiting: list[str] = []

    def begin(self, head: dict[str, Any], *, checkpoint: str | None, epochs: int, steps: int) -> None:
        """Add a line for a start, which goes on from a checkpoint after so many whole epochs and steps.

        Of an older log what came after these is cut, and the first line stays; `head` is the first line of a new one.
        """
        kept = []
        with contextlib.suppress(FileNotFoundError):
            lines = map(_line, self.path.read_text(errors="replace").splitlines())
            kept = [line for line in lines if line.get("type") in ("train", "start")
                    or (line.get("type") == "iteration" and line["step"] <= steps)
                    or (line.get("type") == "epoch" and line["epoch"] <= epochs)]  # fmt: skip
        if not any(line["type"] == "train" for line in kept):
            kept.insert(0, head)
        before, now = _facts(kept), _facts([head])
        changed = {name: [before.get(name), now.get(name)] for name in before | now
                   if before.get(name) != now.get(name)}  # fmt: skip
        start = {"type": "start", "created": head["created"], "checkpoint": checkpoint, "epochs": epochs,
                 "steps": steps, "changed": changed}  # fmt: skip
        records.write(self.path, [json.dumps(line) for line in (*kept, start)])

    def add(self, line: dict[str, Any]) -> None:
        """Append a line."""
        self._waiting.append(json.dumps(line) + "\n")
        if len(self._waiting) >= 20 or line["type"] == "epoch":
            self.flush()

    def flush(self) -> None:
        """Write what waits; a failure is told once."""
        try:
            size = self.path.stat().st_size
            try:
                with self.path.open("a") as file:
                    file.writelines(self._waiting)
            except OSError:
                with contextlib.suppress(OSError), self.path.open("r+") as file:
                    file.truncate(size)  # no half line
                raise
            self._waiting, self.fault = [], ""
        except OSError as error:
            if not self.fault:
                print(
                    f"mpisign.train: WARNING: the log could not be written: {error}; its lines are kept for later",
                    file=sys.stderr,
                    flush=True,
                )
            self.fault = str(error)


class Board:
    """TensorBoard's events of a run, in its folder; those behind the step that a start goes on from are taken back."""

    SCALARS = ("loss", "lr", "train_top1", "validation_loss", "top1", "top5", "images_per_s")

    def __init__(self, folder: Path, *, steps: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=steps + 1)

    def note(self, line: dict[str, Any]) -> None:
        """Write what a line of the log tells in numbers."""
        for name in self.SCALARS:
            if name in line:
                self._writer.add_scalar(f"{line['type']}/{name}", line[name], line["step"])

    def close(self) -> None:
        """Write what waits."""
        self._writer.close()


class Progress:
    """Keeps the lines of a run, and shows how it goes: an epoch in one line, a step in a bar. On rank 0.

    `board` gets the lines too, if it is set.
    """

    def __init__(self, log: Log, *, steps: int, epochs: int, hidden: bool = False) -> None:
        from tqdm import tqdm

        self.log, self.epochs, self.steps = log, epochs, steps
        self._from: tuple[int, float] | None = None  # the first step that was noted, and when
        self._last: dict[str, Any] = {}
        self.board: Board | None = None
        self._bar = tqdm(total=steps, disable=not progress.bars(hidden=hidden), leave=False, unit="step")

    def note(self, line: dict[str, Any]) -> None:
        """Keep a line, and show it."""
        self.log.add(line)
        if self.board is not None:
            self.board.note(line)
        if line["type"] == "epoch":
            with self._bar.external_write_mode():
                self._print_epoch(line)
        else:
            self._bar.n, self._last = line["step"], line
            self._bar.set_postfix(loss=line["loss"])
            if self._from is None:
                self._from = line["step"], time.monotonic()
                progress.at(self.told if self._bar.disable else "")

    def told(self) -> str:
        """Say how far a training is, and how long it will still take."""
        step, (first, began) = self._last["step"], self._from or (0, 0.0)
        text = f"epoch {self._last['epoch']}/{self.epochs}, step {step} of {self.steps}, loss {self._last['loss']:.4f}"
        if step == first:
            return text
        return f"{text}, {progress.left((time.monotonic() - began) / (step - first) * (self.steps - step))}"

    def _print_epoch(self, line: dict[str, Any]) -> None:
        skipped = f", {line['skipped']} pictures left out" if line["skipped"] else ""
        validation = f"{of_validation(line)}; " if "top1" in line else ""
        print(f"epoch {line['epoch']}/{self.epochs}: training loss {line['loss']:.4f}, top-1 {line['train_top1']:.2%}; "
              f"{validation}"
              f"{line['images_per_s']:.4g} images/s (training, all ranks, with loading), {line['seconds']:.4g} s"
              f"{_of_ranks(line)}{skipped}", flush=True)  # fmt: skip

    def close(self) -> None:
        """Take the bar away, and close the board."""
        self._bar.close()
        if self.board is not None:
            self.board.close()


def of_validation(line: Mapping[str, float]) -> str:
    """Return the results of an evaluation as text."""
    top5 = f", top-5 {line['top5']:.2%}" if "top5" in line else ""
    return f"validation loss {line['validation_loss']:.4f}, top-1 {line['top1']:.2%}{top5}"


def _of_ranks(line: dict[str, Any]) -> str:
    """Say how far the ranks agree with the votes, what this one sends for them, and who stands apart."""
    votes = line.get("votes")
    if votes is None:
        return ""
    shares = "" if votes["least"] is None else f", agreement {votes['least']:.1%} to {votes['most']:.1%}"
    apart = "".join(f", rank {rank} stands apart" for rank in votes["apart"])
    return f"{shares}, {text.megabytes(votes['sent'])} MB a step{apart}"
