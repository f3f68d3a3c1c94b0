"""Named time spans: where the seconds of an iteration go."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator


class Spans:
    """Seconds by name, added up until they are taken."""

    PATIENCE = 1000  # spans of a device that are left open; later ones are over long ago

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open: list[tuple[str, Callable[[], float]]] = []

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to `name`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def later(self, name: str, seconds: Callable[[], float]) -> None:
        """Add to `name` what `seconds` returns: the time of something that a device may still be doing."""
        self._open.append((name, seconds))
        if len(self._open) > self.PATIENCE:
            self._close(len(self._open) // 2)

    def take(self) -> dict[str, float]:
        """Return what was measured since the last take, and start anew."""
        self._close(len(self._open))
        taken, self.seconds = self.seconds, {}
        return taken

    def _close(self, count: int) -> None:
        over, self._open = self._open[:count], self._open[count:]
        for name, seconds in over:
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds()
