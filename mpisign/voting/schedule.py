"""When the buckets of a step are voted on: after backward, or during it in a thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..ranks.worker import Worker

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .bucket import Bucket

SCHEDULES = ("serial", "overlap")


def check_schedule(name: str) -> None:
    """Raise a ValueError if `name` is not in SCHEDULES."""
    if name not in SCHEDULES:
        raise ValueError(f"schedule: unknown name {name!r}, choose from {', '.join(SCHEDULES)}")


class Scheduler:
    """Runs the votes of a step in a thread of its own, one after the other, in the order of the buckets.

    "overlap" starts each as soon as its bucket is there, "serial" all of them when backward is done.
    """

    def __init__(self) -> None:
        self._worker = Worker()
        self._stream: torch.cuda.Stream | None = None  # for gradients on a CUDA device
        self._waiting: list[Callable[[], None]] = []  # the votes of the serial schedule

    def submit(self, bucket: Bucket, vote: Callable[[], None], schedule: str) -> None:
        """Have the next bucket of a step voted on; with the last one, wait until all of the step are.

        What a vote raises is raised here with the last bucket, and by every step after it.
        """
        if bucket.index() == 0:
            self._waiting = []  # what a backward that raised may have left
        self._waiting.append(self._beside(bucket.buffer(), vote))
        if schedule == "overlap" or bucket.is_last():
            waiting, self._waiting = self._waiting, []
            for job in waiting:
                self._worker.submit(job)
        if bucket.is_last():
            # Nothing is left of backward but to wait; and what is raised here comes out of it, as from a future it
            # would not.
            self._worker.wait()

    def wait(self) -> None:
        """Wait for the votes that are under way, as those of a backward that raised; the others are not held."""
        self._waiting = []
        self._worker.wait()

    def _beside(self, buffer: Tensor, job: Callable[[], None]) -> Callable[[], None]:
        """Let a job on a CUDA tensor run on a stream of its own, which waits only for what this tensor depends on."""
        if not buffer.is_cuda:
            return job
        import torch

        ready = torch.cuda.current_stream(buffer.device).record_event()
        if self._stream is None:
            self._stream = torch.cuda.Stream(buffer.device)  # type: ignore[no-untyped-call]
        stream = self._stream

        def on_stream() -> None:
            with torch.cuda.stream(stream):
                stream.wait_event(ready)
                job()

        return on_stream

    def close(self) -> None:
        """End the thread after its last vote."""
        self._worker.close()
