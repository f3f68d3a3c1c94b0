"""Every check and test, one after the other; at the end a table of what ran. `make test` calls it.

Each step has a time limit, so that a deadlock fails instead of hanging. The exit code is 1 if any step failed.
"""

import subprocess
import sys
import time
from pathlib import Path

from launch import ROOT, environment
from tabulate import tabulate

HERE = Path(sys.executable).parent
SECOND = Path(f"{HERE.parent}-second") / "bin"  # Open MPI beside MPICH: see the Makefile
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
TRAINING = "tests/train"
AROUND = (
    "tests/doctor", "tests/benchmarks/test_gpu.py", "tests/ranks/test_place.py", "tests/benchmarks/test_reframe.py",
    "tests/report/test_report.py", "tests/report/test_trace.py",
)  # fmt: skip
COLLECTIVE = ("tests/voting/test_exchange.py", "tests/voting/test_hook.py", "tests/bench/test_contest.py")


def collective(folder, ranks, *which):
    """Return the command for the collective tests on so many ranks."""
    launch = [folder / "mpirun", *(["--oversubscribe"] if folder == SECOND else [])]
    return [*launch, "-n", str(ranks), folder / "python", *PYTEST, "--only-mpi", *(which or COLLECTIVE)]


STEPS = {
    "ruff": [HERE / "ruff", "check", "."],
    "ruff format": [HERE / "ruff", "format", "--check", "."],
    "mypy --strict": [HERE / "mypy"],
    "import-linter": [HERE / "lint-imports"],
    "numbers in the READMEs": [
        HERE / "cog",
        "--check",
        "-P",
        "-I",
        "docs",
        "README.md",
        "results/README.md",
        "docs/measuring.md",
    ],
    "pytest, and the bench under MPICH": [
        HERE / "python",
        *PYTEST,
        "-m",
        "not mpi",
        *(f"--ignore={path}" for path in (TRAINING, *AROUND)),
    ],
    "training under MPICH": [HERE / "python", *PYTEST, TRAINING],
    "report, trace, doctor, site suites": [HERE / "python", *PYTEST, *AROUND],
    **{f"collective, MPICH, {ranks} ranks": collective(HERE, ranks) for ranks in (1, 2, 3, 4)},
    "exchanges, MPICH, 16 ranks": collective(HERE, 16, "tests/voting/test_exchange.py"),
    **{f"collective, Open MPI, {ranks} ranks": collective(SECOND, ranks) for ranks in (1, 2, 3, 4)},
    "exchanges, Open MPI, 16 ranks": collective(SECOND, 16, "tests/voting/test_exchange.py"),
    "the command under Open MPI": [
        SECOND / "python",
        *PYTEST,
        "tests/bench/test_bench.py",
        "-k",
        "table or raises or sweep",
    ],
}
LIMIT = 1200  # seconds a step


def main():
    """Run the steps; return the exit code."""
    done = []
    for name, command in STEPS.items():
        print(f"\n=== {name}", flush=True)
        began = time.monotonic()
        try:
            code = subprocess.run(
                command, cwd=ROOT, env=environment(), timeout=LIMIT, stdin=subprocess.DEVNULL
            ).returncode
            result = "passed" if code == 0 else f"FAILED ({code})"
        except subprocess.TimeoutExpired:
            result = "FAILED (time limit)"
        except OSError as error:
            result = f"FAILED ({error})"
        done.append((name, result, f"{time.monotonic() - began:.0f}"))
    failed = sum(result != "passed" for _, result, _ in done)
    print("\n=== what ran\n")
    print(tabulate(done, ["step", "result", "seconds"], colalign=("left", "left", "right")))
    print(f"\n{len(done) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
