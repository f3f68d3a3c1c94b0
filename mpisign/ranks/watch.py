"""Ranks that never come: who starts MPI waits for them for ever, and none of its threads can speak meanwhile.

mpi4py holds the interpreter's lock while MPI starts. So a process of its own looks at the clock.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .launch import Comm

SECONDS = "MPISIGN_START_SECONDS"  # the environment's, for a cluster that starts slowly
LIMIT = 120.0  # seconds that ranks are waited for, where it is not set
EVERY = 10.0  # seconds between two lines of rank 0
LATER = 5.0  # seconds by which rank 1 is more patient: it speaks only where rank 0 is the one that is missing


def limit() -> float:
    """Return for how many seconds the other ranks are waited for."""
    try:
        return float(os.environ.get(SECONDS, LIMIT))
    except ValueError:
        return LIMIT


def gave_up(seconds: float) -> str:
    """Say that ranks did not come."""
    return (
        f"not all ranks came within {seconds:g} s: one ended before it met the others, runs another program or was "
        f"started with --help, or is slow to start ({SECONDS}={5 * seconds:g} waits longer); mpisign doctor tells more"
    )


@contextlib.contextmanager
def watched(program: str, rank: int) -> Iterator[None]:
    """End this process, with a line and exit code 2, if the block takes too long: it starts what finds the others."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads may be there: the child does not need them
        watch = os.fork()
    if watch == 0:
        os.close(writer)
        with contextlib.suppress(BaseException):
            _watch(program, rank, reader)
        os._exit(0)
    os.close(reader)
    try:
        with _ending_when_interrupted():
            yield
    finally:
        os.close(writer)
        os.waitpid(watch, 0)


def _watch(program: str, rank: int, reader: int) -> None:
    """Wait until the pipe is closed; in the end interrupt the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, it goes to all
    began, parent, seconds = time.monotonic(), os.getppid(), limit()
    deadline = began + seconds + (LATER if rank else 0.0)
    while not select.select([reader], [], [], max(0.0, min(EVERY, deadline - time.monotonic())))[0]:
        waited = time.monotonic() - began
        if time.monotonic() >= deadline:
            if rank <= 1:
                print(f"{program}: error: {gave_up(seconds)}", file=sys.stderr, flush=True)
            os.kill(parent, signal.SIGINT)
            return
        if rank == 0:
            print(f"{program}: waiting for the other ranks, {waited:.0f} s", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _ending_when_interrupted() -> Iterator[None]:
    """Let an interrupt end this process at once, with its own number, 2, as the exit code: that of bad input.

    Python's own handler would wait for the interpreter's lock.
    """
    system = ctypes.CDLL(None)
    system.signal.restype, system.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    before = system.signal(signal.SIGINT, ctypes.cast(system._exit, ctypes.c_void_p))
    try:
        yield
    finally:
        system.signal(signal.SIGINT, before)


def wait_for_all(comm: Comm, program: str) -> None:
    """Wait asleep for all ranks, which may run another program; end with a line if they do not come. Collective."""
    request, deadline = comm.Ibarrier(), time.monotonic() + limit()
    while not request.Test():
        if time.monotonic() > deadline:
            print(f"{program}: error: rank {comm.rank}: {gave_up(limit())}", file=sys.stderr, flush=True)
            comm.Abort(2)
        time.sleep(0.001)
