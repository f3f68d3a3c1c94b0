"""The gathering of samples, from all ranks on rank 0."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ..methods.table import METHODS
from ..ranks import clock
from ..ranks.clock import Event
from ..report.records import Run

if TYPE_CHECKING:
    from ..ranks.launch import Comm
    from ..voting.bucket import HeldBucket


class Recorder:
    """Gathers each rank's samples on rank 0, and if `traced` the time line that they bring. Collective."""

    def __init__(self, comm: Comm, run: Run, *, nodes: list[int], traced: bool = False) -> None:
        self.comm, self.run, self.nodes, self.traced = comm, run, nodes, traced
        self.wrong = 0  # coordinates, on all ranks
        self.worst: list[dict[str, Any]] = []  # the wrong exchanges of which no line is kept: method, bytes, wrong
        self.largest = 0  # coordinates of a bucket
        self.clock_error = 0.0  # the most that ranks' time lines may be off rank 0's, seconds
        self._zero = comm.bcast(time.perf_counter())  # of the time line, by rank 0's clock

    def keep(self, kind: str, iteration: int, samples: list[dict[str, Any]]) -> None:
        """Keep samples as lines of that type; those of the warm-up (iterations below 0) only count what is wrong."""
        for sample in samples:
            if iteration < 0:
                self.count(sample.get("method", ""), sample.get("wrong", 0), size=sample.get("bytes"))
            else:
                self.wrong += sample.get("wrong", 0)
        events = [sample.pop("events") for sample in samples]
        if iteration >= 0:
            about = {"type": kind, "iteration": iteration}
            lines = [about | sample for sample in samples]
            if self.traced:
                lines += self._time_line(lines, events)
            for rank, part in enumerate(self.comm.gather(lines) or []):
                self.run.samples += [line | {"rank": rank} for line in part]

    def count(self, method: str, wrong: int, *, size: int | None = None) -> None:
        """Count the wrong coordinates, on all ranks, of an exchange of which no line is kept; `size` is a sweep's."""
        self.wrong += wrong
        if wrong:
            self.worst.append({"method": method, **({"bytes": size} if size else {}), "wrong": wrong})

    def _time_line(self, samples: list[dict[str, Any]], events: list[list[Event]]) -> list[dict[str, Any]]:
        """Return the lines of type "span": one for each sample and thread."""
        offset, error = clock.clock_offset(self.comm, self.nodes)
        self.clock_error = max(self.clock_error, error)
        return [
            {"type": "span", "of": sample["type"], "thread": thread,
             **{fact: sample[fact] for fact in ("iteration", "method", "bytes") if fact in sample},
             "spans": [_rounded(event, offset - self._zero) for event in its_events if event.thread == thread]}
            for sample, its_events in zip(samples, events, strict=True)
            for thread in dict.fromkeys(event.thread for event in its_events)
        ]  # fmt: skip

    def traffic(self, of: int | None, buckets: list[HeldBucket]) -> None:
        """Keep what each method sends and receives for these buckets."""
        tie = self.run.head["config"]["tie"]
        self.largest = max([self.largest, *(bucket.tensor.numel() for bucket in buckets)])
        every = [[tuple(part.shape) for part in bucket.parts] for bucket in buckets]
        self.run.head["traffic"][str(of or "model")] = {
            name: sum(METHODS[name].traffic(shapes, tie, self.nodes) for shapes in every).T.tolist()  # type: ignore[union-attr]
            for name in self.run.head["methods"]
        }


def _rounded(event: Event, shift: float) -> list[Any]:
    """Return name, begin and seconds, whole nanoseconds: begin and end are rounded, so what is nested stays so."""
    began = round(event.began + shift, 9)
    return [event.name, began, round(round(event.began + event.seconds + shift, 9) - began, 9)]
