"""benchmarks/gpu.sh, as far as it goes without a GPU."""

import os
import subprocess
import sys

import pytest
import torch
from launch import MPIRUN, ROOT, environment

from mpisign.report import records
from mpisign.report.summary import summarize

SCRIPT = ROOT / "benchmarks" / "gpu.sh"


def gpu_sh(out, **extra):
    told = environment(PYTHON=sys.executable, MPIRUN=MPIRUN, OUT=str(out), **extra)
    return subprocess.run([SCRIPT], cwd=out, env=told, capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_without_a_gpu_it_says_so_and_leaves_nothing(tmp_path):
    ended = gpu_sh(tmp_path)
    assert ended.returncode == 2
    assert ended.stdout == "gpu.sh: error: no CUDA device here: nothing was measured\n"
    assert list(tmp_path.iterdir()) == []


def test_a_python_without_the_packages_is_told(tmp_path):
    bare = tmp_path / "bin"
    bare.mkdir()
    for name in ("bash", "dirname", "env"):
        (bare / name).symlink_to(f"/usr/bin/{name}")
    copy = tmp_path / "benchmarks" / "gpu.sh"  # not beside a .venv
    copy.parent.mkdir()
    copy.write_text(SCRIPT.read_text())
    told = {name: value for name, value in os.environ.items() if name != "PYTHON"} | {"PATH": str(bare)}
    ended = subprocess.run(["/bin/bash", copy], env=told, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert ended.stdout.startswith("gpu.sh: error: no Python here has mpisign's packages")


def test_its_steps_on_the_cpu(tmp_path):
    ended = gpu_sh(tmp_path, DEVICE="cpu", RANKS="2", MODEL="tiny", ITERATIONS="2")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "tests of the device: passed" in ended.stdout
    assert "2 ranks: passed" in ended.stdout
    assert "FAILED" not in ended.stdout
    assert "vote-alltoall-gloo" in ended.stdout
    assert "Where an iteration" not in ended.stdout
    log, record = sorted(tmp_path.iterdir(), key=lambda path: path.suffix, reverse=True)
    assert all(not row["wrong"] for row in summarize(records.read(record)).rows)
    assert log.read_text().startswith("=== tests of the device: ")
