"""Every check and test, two at a time; at the end a table of what ran, and the slowest tests. `make test` calls it.

With --check only what is quick: `make check`. Each step has a time limit, so that a deadlock fails instead of hanging.
The exit code is 1 if any step failed.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from launch import ROOT, environment
from tabulate import tabulate

HERE = Path(sys.executable).parent
SECOND = Path(f"{HERE.parent}-second") / "bin"  # Open MPI beside MPICH: see the Makefile
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
TRAINING = ("tests/train",)
SCRIPTS = ("tests/habits", "tests/docs", "tests/voting/test_fsdp.py")  # the vote in the scripts of users
# What starts other programs than Python; steps of their own. These tests assert no times.
BUILT = ("tests/test_package.py", "tests/test_wheel.py", "tests/benchmarks", "tests/ranks")
SHOWN = ("tests/doctor", "tests/report")
WORDS = ("tests/voting/test_exchange.py",)
MANY = ("-k", "exact or traffic")  # of 16 ranks: the laws of the exchanges alone
HOOKS = ("tests/voting/test_hook.py", "tests/voting/test_copies.py", "tests/bench/test_contest.py",
         "tests/bench/test_readiness.py", "tests/methods/test_shares.py", "tests/ranks/test_patience.py")  # fmt: skip
FAULTS = ("tests/bench/test_mutants.py",)
APART = ("tests/voting/test_apart.py",)
LIMIT = 1200  # seconds a step
SLOWEST = 10


def alone(*which, python=HERE / "python"):
    """Return the command for tests that start what ranks they need themselves."""
    return [python, *PYTEST, "-m", "not mpi", *which]


def collective(folder, ranks, *which):
    """Return the command for the tests that are ranks; of fewer ranks they take sub-communicators."""
    launch = [folder / "mpirun", *(["--oversubscribe"] if folder == SECOND else [])]
    return [*launch, "-n", str(ranks), folder / "python", *PYTEST, "--only-mpi", *which]


CHECKS = {
    "ruff": [HERE / "ruff", "check", "."],
    "ruff format": [HERE / "ruff", "format", "--check", "."],
    "mypy --strict": [HERE / "mypy"],
    "import-linter": [HERE / "lint-imports"],
}
UNIT = alone("--quick", "-rf")
FIRST = ("tests/coding", "tests/report")
HALVES = (
    {"unit tests of the coding and of the report": [*UNIT, *FIRST]},
    {"all other unit tests": [*UNIT, *(f"--ignore={path}" for path in FIRST)]},
)
DRAWN = {"README and docs are as drawn": [HERE / "python", "docs/draw.py", "--check"]}
# Two lanes run beside each other: one is mostly one process that computes, the other mostly ranks that start and wait.
LANES = (
    CHECKS
    | DRAWN
    | {
        "report and doctor": alone(*SHOWN),
        "ranks, benchmarks, package": alone(*BUILT),
        "training under MPICH": alone(*TRAINING),
        "scripts of users": alone(*SCRIPTS),
        "exchanges, Open MPI, 1 to 4 ranks": collective(SECOND, 4, *WORDS),
        "the bench under Open MPI": alone(
            "tests/bench/test_bench.py", "-k", "table and 3 or raises", python=SECOND / "python"
        ),
    },
    {
        "exchanges and hook, MPICH, 1 to 4 ranks": collective(HERE, 4, *WORDS, *HOOKS, *FAULTS),
        "exchanges, MPICH, 16 ranks": collective(HERE, 16, *WORDS, *MANY),
        "hook, Open MPI, 3 ranks": collective(SECOND, 3, *HOOKS, *APART, "--as-started"),
        "exchanges, Open MPI, 16 ranks": collective(SECOND, 16, *WORDS, *MANY),
        "all other tests, and the bench under MPICH": alone(
            *(f"--ignore={path}" for path in (*TRAINING, *SCRIPTS, *SHOWN, *BUILT))
        ),
    },
)


class Results:
    """What the steps came to: told as each ends, and in tables at the end."""

    def __init__(self, steps):
        self.steps, self.rows, self.slow = steps, [], []
        self._speaking = threading.Lock()

    def add(self, name, result, wall, cpu, printed, durations):
        """Print what a step has printed, and keep its result."""
        with self._speaking:
            print(f"\n=== {name}: {result} in {wall:.0f} s\n{printed.rstrip()}", flush=True)
            self.rows.append((name, result, f"{wall:.0f}", f"{cpu:.0f}"))
            self.slow += durations

    def show(self, wall):
        """Print the tables; return the exit code."""
        passed = sum(result == "passed" for _, result, *_ in self.rows)
        failed = self.steps - passed  # also those that did not run
        print("\n=== the slowest tests\n")
        for seconds, test in sorted(self.slow, reverse=True)[:SLOWEST]:
            print(f"{seconds:6.1f} s  {test}")
        print("\n=== what ran\n")
        headers = ["step", "result", "seconds", "of CPU"]
        print(tabulate(self.rows, headers, colalign=("left", "left", "right", "right")))
        print(f"\n{passed} passed, {failed} failed, in {wall:.0f} s")
        return 1 if failed else 0


def run(name, command, results):
    """Run one step; what it prints is kept until it ends."""
    with tempfile.TemporaryFile("w+", errors="replace") as printed, tempfile.NamedTemporaryFile("r") as durations:
        began, cpu = time.monotonic(), 0.0
        # One thread of torch a process: lanes, and ranks, share the cores.
        told = environment(MPISIGN_TEST_DURATIONS=durations.name, OMP_NUM_THREADS="1")
        try:
            process = subprocess.Popen(
                command, cwd=ROOT, env=told, stdin=subprocess.DEVNULL, stdout=printed, stderr=subprocess.STDOUT
            )
            too_late = threading.Timer(LIMIT, process.kill)
            too_late.start()
            _, status, used = os.wait4(process.pid, 0)  # wait4 alone tells the time of this one's processes
            too_late.cancel()
            code, cpu = os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
            result = "passed" if code == 0 else f"FAILED ({code})"
            process.returncode = code
        except OSError as error:
            result = f"FAILED ({error})"
        wall = time.monotonic() - began
        if wall > LIMIT:
            result = "FAILED (time limit)"
        printed.seek(0)
        results.add(name, result, wall, cpu, printed.read(), list(_parsed(durations)))


def _parsed(lines):
    """Yield the seconds and names of tests; the last line of a step that was killed may be torn."""
    for line in lines:
        with contextlib.suppress(ValueError):
            yield tuple(json.loads(line))


def main(arguments=None):
    """Run the steps; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="what is quick alone")
    parser.add_argument("--one-lane", action="store_true", help="one step after the other")
    given = parser.parse_args(arguments)
    lanes = (CHECKS | HALVES[0], HALVES[1]) if given.check else LANES
    if given.one_lane:
        lanes = ({name: command for lane in lanes for name, command in lane.items()},)
    results, began = Results(sum(map(len, lanes))), time.monotonic()
    threads = [
        threading.Thread(
            target=lambda lane=lane: [run(name, command, results) for name, command in lane.items()],
            daemon=True,  # Ctrl-C ends all
        )
        for lane in lanes
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results.show(time.monotonic() - began)


if __name__ == "__main__":
    sys.exit(main())
