"""How many rounds a measurement has: those asked for, or until its intervals are narrow enough."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..report import rows
from ..report.records import Run

if TYPE_CHECKING:
    from ..ranks.launch import Comm


class Rounds:
    """Counts the rounds of a measurement from -warmup on, until it has what was asked for. Collective.

    The number asked for may be the least: with `until` more follow until the intervals are narrow enough. They are
    looked at ever more rarely, so that looking stays cheap; and where to stop depends on their width alone, not on
    what they say (Chow & Robbins 1965).
    """

    def __init__(self, comm: Comm, run: Run, *, what: str = "round", size: int | None = None, block: int = 1) -> None:
        self.comm, self.run, self.what, self.size = comm, run, what, size
        self.config = run.head["config"]
        self.least = -(-self.config["iterations"] // block)
        self.cap = self.config["time_cap"] / max(1, len(self.config["sizes"]))

    def __iter__(self) -> Iterator[int]:
        """Count, with a progress bar on rank 0 of a terminal."""
        from tqdm import tqdm

        began, done = time.monotonic(), self.least
        hidden = self.comm.rank != 0 or not sys.stderr.isatty()
        with tqdm(total=self.config["warmup"] + self.least, desc=self.what, disable=hidden, leave=False) as bar:
            for i in range(-self.config["warmup"], self.least):
                yield i
                bar.update()
            while self.config["until"] and self.comm.bcast(self._goes_on(began)):
                more = max(1, done // 10)
                bar.total += more
                for i in range(done, done + more):
                    yield i
                    bar.update()
                done += more

    def _goes_on(self, began: float) -> bool | None:
        """Return, on rank 0, whether the intervals are still too wide and there is time."""
        if self.comm.rank != 0:
            return None
        wanted: float = self.config["until"]
        return time.monotonic() - began < self.cap and rows.widest(self.run, self.size) > wanted
