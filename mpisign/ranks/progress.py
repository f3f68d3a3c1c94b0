"""What a command tells while it works, on rank 0's stderr: a line at its start, and one every ten seconds.

A process has one stderr, so there is one thing that it is at, set from wherever that is known (`at`).
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

EVERY = 10.0  # seconds between two lines
_at: Callable[[], str] = str


def at(what: str | Callable[[], str]) -> None:
    """Set what the command is at; a function is asked when a line is due. Nothing is told of an empty text."""
    global _at
    _at = what if callable(what) else lambda: what


def bars(*, hidden: bool = False) -> bool:
    """Tell whether progress is shown as a bar: on a terminal, unless `hidden`."""
    return not hidden and sys.stderr.isatty()


@contextlib.contextmanager
def telling(program: str, *, hidden: bool = False, every: float = EVERY) -> Iterator[Callable[[str], None]]:
    """Tell what the command is at, every so many seconds; yield what tells a line now. `hidden`: say nothing.

    The thread that does so sleeps in between; it takes the interpreter for some ten microseconds a line.
    """

    def say(text: str) -> None:
        if not hidden:
            print(f"{program}: {text}", file=sys.stderr, flush=True)

    def beat() -> None:
        while not ended.wait(every):
            text = _at()
            if text:
                say(f"{time.monotonic() - began:.0f} s: {text}")

    began, ended = time.monotonic(), threading.Event()
    thread = threading.Thread(target=beat, name="mpisign telling", daemon=True)
    at("starting")
    if not hidden:
        thread.start()
    try:
        yield say
    finally:
        ended.set()
        if not hidden:
            thread.join()


def left(seconds: float) -> str:
    """Say how long something will still take."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"about {seconds / length:.0f} {unit} left"
    return f"about {max(1.0, seconds):.0f} s left"
