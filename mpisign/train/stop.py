"""How a training ends before its last epoch: told to by a signal, or by a fault that all ranks have agreed on."""

from __future__ import annotations

import signal
from typing import Any

from ..ranks import launch

EXIT_CODE = 85  # of a run that was told to stop and left a checkpoint: a job script may requeue it


class Stopped(Exception):  # noqa: N818 - it is no error
    """Raised on all ranks at the same place: one of them was told to stop."""


class Agreed(launch.JobError):
    """A fault, raised on all ranks at the same place: one of them is to print it."""


class Stop:
    """Whether the job was told to stop, by SIGUSR1 or SIGTERM: schedulers send them some time before the end."""

    def __init__(self) -> None:
        self._heard = False
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, self._hear)

    def _hear(self, number: int, frame: Any) -> None:
        self._heard = True

    def __call__(self) -> bool:
        return self._heard
