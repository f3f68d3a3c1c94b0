"""How many rounds a measurement has: those asked for, as many as fit, or until its intervals are narrow enough."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..report import rows
from ..report.records import Run
from .config import LEAST, MOST, SECONDS, SECONDS_OF_A_SIZE

if TYPE_CHECKING:
    from ..ranks.launch import Comm


def fewest(run: Run) -> int:
    """Return how many rounds a measurement has at least: as asked, or so many that each column has a verdict."""
    asked = run.head["config"]["iterations"]
    return -(-asked // run.head["block"]) if asked else max(LEAST, rows.enough_rounds(run))


class Rounds:
    """Counts the rounds of a measurement from -warmup on, until it has what was asked for. Collective.

    There are `least` of them. If iterations were asked for, these are all; else more follow while there is time. With
    `until` more follow until the intervals are narrow enough. They are looked at ever more rarely, so that looking
    stays cheap; and where to stop depends on their width alone, not on what they say (Chow & Robbins 1965).
    """

    def __init__(self, comm: Comm, run: Run, *, what: str = "round", size: int | None = None) -> None:
        self.comm, self.run, self.what, self.size = comm, run, what, size
        self.config, self.least = run.head["config"], fewest(run)
        sizes = len(self.config["sizes"])
        if self.config["until"]:
            self.seconds, self.most = self.config["time_cap"] / max(1, sizes), sys.maxsize
        else:
            self.seconds = SECONDS_OF_A_SIZE if sizes else SECONDS
            self.most = self.least if self.config["iterations"] else MOST

    def __iter__(self) -> Iterator[int]:
        """Count, with a progress bar on rank 0 of a terminal."""
        from tqdm import tqdm

        hidden = self.comm.rank != 0 or not sys.stderr.isatty()
        with tqdm(total=self.config["warmup"] + self.least, desc=self.what, disable=hidden, leave=False) as bar:
            for i in range(-self.config["warmup"], 0):
                yield i
                bar.update()
            began, done, more = time.monotonic(), 0, self.least
            while more:
                for i in range(done, done + more):
                    yield i
                    bar.update()
                done += more
                more = self._more(done, began)
                bar.total += more

    def _more(self, done: int, began: float) -> int:
        """Return how many rounds follow before this is asked again; 0 ends the measurement."""
        more = min(max(1, done // 10), self.most - done)
        if more <= 0:
            return 0
        goes_on = self.comm.rank == 0 and time.monotonic() - began < self.seconds and self._too_wide()
        return more if self.comm.bcast(goes_on) else 0

    def _too_wide(self) -> bool:
        """Tell whether the intervals are not yet as narrow as asked for, if they were to be."""
        wanted: float | None = self.config["until"]
        return not wanted or rows.widest(self.run, self.size) > wanted
