"""Start commands as a user does: under the mpirun that lies beside this Python, or the one on the PATH."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BESIDE = Path(sys.executable).parent / "mpirun"
MPIRUN = str(BESIDE) if BESIDE.exists() else shutil.which("mpirun") or "mpirun"
quick = False  # True under make check


def skip_if_quick():
    """Skip the test that comes here under `make check`: it starts ranks or other processes, or takes seconds."""
    if quick:
        pytest.skip("not for make check: make test runs it")


@cache
def is_open_mpi():
    """Whether MPIRUN is Open MPI's."""
    said = subprocess.run([MPIRUN, "--version"], capture_output=True, text=True, check=False).stdout
    return "Open MPI" in said


def mpirun(ranks, *command):
    """Return the command line that starts Python on so many ranks, more than there are cores if need be."""
    skip_if_quick()
    return [MPIRUN, *(["--oversubscribe"] if is_open_mpi() else []), "-n", str(ranks), sys.executable, *command]


def environment(**extra):
    """Return this environment without what a launcher may have left in it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PMI", "SLURM_", "OMPI_COMM"))}
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_mpi_yield_when_idle": "1"}
    return kept | root | {"PYTHONPATH": str(ROOT)} | extra


def run(ranks, *command, cwd=ROOT, timeout=240, **extra):
    """Run and wait; a run that hangs is killed and fails the test."""
    return subprocess.run(
        mpirun(ranks, *command), cwd=cwd, env=environment(**extra), capture_output=True, text=True, timeout=timeout,
        check=False,
    )  # fmt: skip


def by_torchrun(ranks, *command):
    """Return the command line that starts a script, or -m and a module, on so many ranks of this node by torchrun."""
    skip_if_quick()
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), *command]


def torchrun(ranks, *command, cwd=ROOT, timeout=240, **extra):
    """Run by torchrun, and wait: see `by_torchrun`."""
    return subprocess.run(
        by_torchrun(ranks, *command), cwd=cwd, env=environment(OMP_NUM_THREADS="1", **extra), capture_output=True,
        text=True, timeout=timeout, check=False,
    )  # fmt: skip


@contextlib.contextmanager
def running(command, cwd, **extra):
    """Start a command and yield the job, whose output is to be read; what is left of it at the end is killed."""
    job = subprocess.Popen(command, cwd=cwd, env=environment(**extra), stderr=subprocess.PIPE, stdout=subprocess.PIPE,
                           text=True, start_new_session=True)  # fmt: skip
    try:
        yield job
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)


def written(file, ended):
    """Return the lines of JSON that ranks have written; without any, fail with what they have said."""
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    assert lines, ended.stderr[-4000:]
    return lines


def kill_a_rank(argument, launcher):
    """Kill the last process that has this argument, and is not the launcher itself."""
    listed = subprocess.run(["ps", "-wweo", "pid,args"], capture_output=True, text=True, check=True).stdout
    ranks = [line for line in listed.splitlines() if argument in line and launcher not in line]
    os.kill(int(ranks[-1].split()[0]), signal.SIGKILL)


PROGRESS = re.compile(r"mpisign[.\w]*: \d+ (s: |ranks? on )")  # at the start, and every ten seconds


def our_lines(errors):
    """Return the lines of a program of ours, without what an mpirun says of a non-zero exit code, and how far it is."""
    return [line for line in errors.splitlines() if line.startswith("mpisign") and not PROGRESS.match(line)]
