"""Named time spans: where the seconds of an iteration go."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Spans:
    """Seconds by name, added up until they are taken."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to `name`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def take(self) -> dict[str, float]:
        """Return what was measured since the last take, and start anew."""
        taken, self.seconds = self.seconds, {}
        return taken
