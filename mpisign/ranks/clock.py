"""Named time spans: where the seconds of an iteration go, and when."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import torch

    from .launch import Comm


class Event(NamedTuple):
    """One span on the time line: its thread's row, and when it began by time.perf_counter, in seconds."""

    thread: str
    name: str
    began: float
    seconds: float


class Spans:
    """Seconds by name, added up until they are taken. If `traced`, when each span began is kept too.

    `most` is the largest number of spans between two takes. All that is added is added to `into`, too.
    """

    PATIENCE = 1000  # spans of a device that are left open; later ones are over long ago

    def __init__(self, traced: bool = False, *, into: Spans | None = None) -> None:
        self.into = into
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
        if self.into is not None:
            self.into.add(name, began, seconds)
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
        if self.into is not None:
            self.into.later(name, seconds)
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


PINGS = 20


def clock_offset(
    comm: Comm, nodes: list[int], *, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, float]:
    """Return what to add to this rank's clock to get rank 0's, and how far off that may be on any rank, in seconds.

    Collective. The ranks of a node (see `nodes_of`) read one clock. Rank 0 asks the first rank of each other node for
    the time: the answer was given between asking and hearing, so the middle is off by at most half of the trip, and
    of PINGS trips the quickest is taken (Cristian 1989). That is some microseconds on a network that is idle; on
    rank 0's node it is nothing.
    """
    mine = 0.0, 0.0  # offset and error
    for other in sorted({nodes.index(node) for node in nodes} - {0}):
        if comm.rank == other:
            for _ in range(PINGS):
                comm.recv(source=0)
                comm.send(clock(), 0)
            mine = comm.recv(source=0)
        elif comm.rank == 0:
            trips = []
            for _ in range(PINGS):
                asked = clock()
                comm.send(None, other)
                answer = comm.recv(source=other)
                heard = clock()
                trips.append((heard - asked, (asked + heard) / 2 - answer))
            quickest, offset = min(trips)
            comm.send((offset, quickest / 2), other)
    everyones = comm.allgather(mine)
    return everyones[nodes.index(nodes[comm.rank])][0], max(error for _, error in everyones)


Moment: TypeAlias = "float | torch.cuda.Event"  # seconds of the host's clock, or a mark on a device's stream


def moment(where: torch.device) -> Moment:
    """Return now: on a CUDA device when its current stream will have come so far, which nobody waits for."""
    if where.type != "cuda":
        return time.perf_counter()
    import torch

    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(where))
    return event


def between(began: Moment, ended: Moment) -> float:
    """Return the seconds between two moments of one device, which is waited for."""
    if isinstance(began, float) or isinstance(ended, float):
        return float(ended) - float(began)  # type: ignore[arg-type]
    ended.synchronize()
    return 1e-3 * float(began.elapsed_time(ended))


@contextlib.contextmanager
def timed(spans: Spans, name: str, where: torch.device) -> Iterator[None]:
    """Add the block's time to the span `name`: on a CUDA device what its current stream takes, by events.

    Nobody waits for them: the host may be far ahead.
    """
    if where.type != "cuda":
        with spans(name):
            yield
        return
    began = moment(where)
    try:
        yield
    finally:
        ended = moment(where)
        spans.later(name, lambda: between(began, ended))
