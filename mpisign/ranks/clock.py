"""Named time spans: where the seconds of an iteration go, and when."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple


class Event(NamedTuple):
    """One span on the time line: its thread's row, and when it began by time.perf_counter, in seconds."""

    thread: str
    name: str
    began: float
    seconds: float


class Spans:
    """Seconds by name, added up until they are taken. If `traced`, when each span began is kept too.

    `most` is the largest number of spans between two takes.
    """

    PATIENCE = 1000  # spans of a device that are left open; later ones are over long ago

    def __init__(self, traced: bool = False) -> None:
        self.seconds: dict[str, float] = {}
        self.most = self._count = 0
        self.traced = traced
        self._events: list[Event] = []
        self._open: list[tuple[str, Callable[[], float]]] = []

    def __call__(self, name: str) -> _Span:
        """Add the time that the block takes to `name`."""
        return _Span(self, name)

    def add(self, name: str, began: float, seconds: float) -> None:
        """Add a span that this thread has measured: the main one's row is "training", any other's "vote"."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self._count += 1
        if self.traced:
            main = threading.get_ident() == threading.main_thread().ident
            self.mark("training" if main else "vote", name, began, seconds)

    def mark(self, thread: str, name: str, began: float, seconds: float) -> None:
        """Put a span on the time line alone."""
        if self.traced:
            self._events.append(Event(thread, name, began, seconds))

    def later(self, name: str, seconds: Callable[[], float]) -> None:
        """Add to `name` what `seconds` returns: the time of something that a device may still be doing.

        It has no place on the time line: when it began is not known by the host's clock.
        """
        self._count += 1
        self._open.append((name, seconds))
        if len(self._open) > self.PATIENCE:
            self._close(len(self._open) // 2)

    def take(self) -> dict[str, float]:
        """Return what was measured since the last take, and start anew."""
        self._close(len(self._open))
        taken, self.seconds = self.seconds, {}
        self.most, self._count = max(self.most, self._count), 0
        return taken

    def _close(self, count: int) -> None:
        over, self._open = self._open[:count], self._open[count:]
        for name, seconds in over:
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds()

    def take_events(self) -> list[Event]:
        """Return the time line since the last call; without a trace it is empty."""
        taken, self._events = self._events, []
        return taken


class _Span:
    """One block that is timed: a context manager of two plain methods costs half of a generator's."""

    __slots__ = ("_began", "_name", "_spans")

    def __init__(self, spans: Spans, name: str) -> None:
        self._spans, self._name = spans, name

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *fault: object) -> None:
        self._spans.add(self._name, self._began, time.perf_counter() - self._began)
