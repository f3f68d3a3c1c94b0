"""One thread that does one job after the other: the exchanges of a step, while backward goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Worker:
    """A thread and its queue.

    Collectives of one communicator must be called in the same order on all ranks: so jobs are never done side by
    side, and after one that failed none is done any more, for this rank would be out of step with the others.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "mpisign")
        self._ident: int | None = None  # of the thread, from its first job on
        self._jobs: list[Future[None]] = []
        self._fault: BaseException | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Queue a job."""
        self._jobs.append(self._thread.submit(self._do, job))

    def _do(self, job: Callable[[], None]) -> None:
        self._ident = threading.get_ident()
        if self._fault is None:
            try:
                job()
            except BaseException as fault:
                self._fault = fault

    def wait(self) -> None:
        """Wait until the queue is empty; raise what a job raised, now and ever after."""
        jobs, self._jobs = self._jobs, []
        for job in jobs:
            job.result()
        if self._fault is not None:
            raise self._fault

    def close(self) -> None:
        """End the thread after its last job, and wait for that, unless this is the thread: it may collect its owner."""
        self._thread.shutdown(wait=threading.get_ident() != self._ident)
