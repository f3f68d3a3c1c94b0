"""How many rounds a measurement has: those asked for, as many as fit, or until its intervals are narrow enough."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..ranks import progress
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
        self._done, self._planned, self._began = 0, self.least, None  # type: int, int, float | None
        sizes = len(self.config["sizes"])
        if self.config["until"]:
            self.seconds, self.most = self.config["time_cap"] / max(1, sizes), sys.maxsize
        else:
            self.seconds = SECONDS_OF_A_SIZE if sizes else SECONDS
            self.most = self.least if self.config["iterations"] else MOST

    def __iter__(self) -> Iterator[int]:
        """Count, with a progress bar on rank 0 of a terminal; elsewhere what is told every ten seconds (`progress`)."""
        from tqdm import tqdm

        bars = progress.bars(hidden=self.comm.rank != 0 or self.config.get("quiet", False))
        progress.at("" if bars else self.told)
        with tqdm(total=self.config["warmup"] + self.least, desc=self.what, disable=not bars, leave=False) as bar:
            for i in range(-self.config["warmup"], 0):
                yield i
                bar.update()
            self._began, done, more = time.monotonic(), 0, self.least
            while more:
                self._planned = done + more
                for i in range(done, done + more):
                    yield i
                    bar.update()
                    self._done = i + 1
                done += more
                more = self._more(done, self._began)
                bar.total += more
        progress.at("ending")

    def told(self) -> str:
        """Say how far this is, and how long it will still take if that can be told."""
        sizes = self.config["sizes"]
        of = f"size {sizes.index(self.size) + 1} of {len(sizes)}, {self.what}, " if self.size else ""
        if self._began is None:
            return f"{of}warm-up"
        done, passed = self._done, time.monotonic() - self._began
        more = "" if self.most == self.least else " or more"
        text = f"{of}{done} of {self._planned}{more} rounds done"
        if not done or self.size:
            return text
        seconds = passed / done * (self._planned - done)
        if self.config["until"]:
            return f"{text}, {progress.left(max(seconds, self.seconds - passed))} at most"
        return f"{text}, {progress.left(seconds if not more else max(seconds, self.seconds - passed))}"

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
