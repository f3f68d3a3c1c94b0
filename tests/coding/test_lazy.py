"""What is imported when: a name costs what it needs, and kernels load at their first call."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("mpi4py", "numba", "numpy", "torch")
TELL = f"import sys; print(*(name for name in {HEAVY} if name in sys.modules))"


def loaded_by(code):
    """Return which of HEAVY a new process has loaded after `code`."""
    command = [sys.executable, "-c", f"{code}\n{TELL}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120).stdout.split()


@pytest.mark.parametrize(
    "code",
    [
        "import mpisign",
        "from mpisign.voting.exchange import EXCHANGES, exchange_class, plan, vote",
        "from mpisign.voting.adversary import ADVERSARIES, check_adversary",
        "from mpisign.voting.schedule import SCHEDULES",
        "from mpisign import Lion, Noisy, Rule, SignSGD, Signum, Stochastic",
        "from mpisign.coding.ties import TIES, Tie, check_tie",
        "from mpisign.coding.sizes import words_for",
    ],
)
def test_names_alone_load_no_library(code):
    assert loaded_by(code) == []


@pytest.mark.parametrize(
    "code",
    ["from mpisign import majority, pack, unpack", "from mpisign.voting.native import CounterSum, merge_function"],
)
def test_kernels_load_at_the_first_call(code):
    assert "numba" not in loaded_by(code)


def test_words_are_voted_on_without_torch():
    code = """
import numpy as np
from mpi4py import MPI
import mpisign
words = mpisign.pack(np.array([1, -1], np.float32))
for exchange in mpisign.EXCHANGES:
    assert mpisign.vote(MPI.COMM_SELF, words, exchange=exchange) == [2]
"""
    assert loaded_by(code) == ["mpi4py", "numba", "numpy"]
