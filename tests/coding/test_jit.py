import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launch import ROOT, skip_if_quick

VOTE = """
import numpy as np, sys
sys.path.insert(0, "tests")
import reference
from mpisign.coding import counting
from mpisign.coding.kernels import jit
for P in (3, 4, 7, 15, 16):
    words = np.random.default_rng(P).integers(0, 2**64, (P, 300), np.uint64)
    assert np.array_equal(counting.majority(words), reference.majority(words)), P
print(jit.cache_folder())
"""


def vote(environment):
    skip_if_quick()
    return subprocess.Popen(
        [sys.executable, "-c", VOTE], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"} | environment,
    )  # fmt: skip


def finish(process):
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return output.strip()


def test_processes_that_start_together_run_the_right_code_and_compile_it_once(tmp_path):
    """Without the lock Numba gives different code of one function the same file, and votes come out wrong."""
    (folder,) = {finish(process) for process in [vote({"NUMBA_CACHE_DIR": str(tmp_path)}) for _ in range(4)]}
    assert folder.startswith(str(tmp_path))
    written = {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*.nbc")}
    assert written
    finish(vote({"NUMBA_CACHE_DIR": str(tmp_path)}))
    assert {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*.nbc")} == written


def test_an_install_without_a_writable_folder_still_votes():
    assert finish(vote({"XDG_CACHE_HOME": "/proc/nowhere"})) == "None"


@pytest.mark.parametrize("changed", ["__init__.py", "coding/kernels/simd.py", "voting/native.py"])
def test_code_compiled_from_other_sources_is_not_loaded(tmp_path, changed):
    """The cache folder bears a digest of all sources, those in sub-folders too."""
    shutil.copytree(ROOT / "mpisign", tmp_path / "mpisign", ignore=shutil.ignore_patterns("__pycache__"))

    def folder():
        code = "from mpisign.coding.kernels import jit; print(jit.cache_folder())"
        environment = {"PATH": os.environ["PATH"], "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
        command = [sys.executable, "-B", "-c", code]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout

    before = folder()
    assert folder() == before
    with (tmp_path / "mpisign" / changed).open("a") as source:
        source.write("\n# changed\n")
    assert folder() != before
