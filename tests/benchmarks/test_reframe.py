"""The ReFrame test, run by ReFrame itself on the system that it knows without a settings file."""

import re
import subprocess
import sys

import pytest
from launch import ROOT, environment

pytest.importorskip("reframe", reason="ReFrame is not installed (pip install ReFrame-HPC)")


def reframe(folder, *options):
    command = [sys.executable, "-c", "import sys; from reframe.frontend.cli import main; sys.exit(main())"]
    command += ["--prefix", folder, "-c", ROOT / "benchmarks" / "reframe_mpisign.py", "-r", "--nocolor", *options]
    return subprocess.run(command, cwd=folder, env=environment(TMPDIR=str(folder)), capture_output=True, text=True,
                          timeout=240, check=False)  # fmt: skip


def test_it_passes_and_tells_each_speed_up(tmp_path):
    ended = reframe(tmp_path)
    assert ended.returncode == 0, ended.stdout
    assert "Ran 1/1 test case(s) from 1 check(s) (0 failure(s)" in ended.stdout
    told = dict(re.findall(r"^P: (\S+): (\S+ \S+)", ended.stdout, re.M))
    assert set(told) == {f"{method}_{key}" for method in ("mpi", "gloo", "vote-alltoall")
                         for key in ("iteration_s", "speedup")}  # fmt: skip
    assert told["gloo_speedup"] == "1.0 ratio"
    assert told["vote-alltoall_iteration_s"].endswith(" s")


def test_it_fails_where_the_bench_does(tmp_path):
    ended = reframe(tmp_path, "-S", "methods=mpi,nonsense")
    assert ended.returncode == 1, ended.stdout
    assert "FAILED" in ended.stdout
