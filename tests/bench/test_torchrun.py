"""The commands under torchrun, where there is no MPI: importing mpi4py fails in all of these ranks."""

import re
import subprocess
import sys
import time

import pytest
from jobs import Job, start
from launch import ROOT, by_torchrun, kill_a_rank, our_lines, running, torchrun

from mpisign.methods.method import MPI, NCCL
from mpisign.methods.table import METHODS
from mpisign.report import records
from mpisign.report.summary import summarize

RANKS = 3
TINY = ("--model", "tiny", "--image-size", "32", "--iterations", "6", "--warmup", "1")
ABLE = tuple(name for name, method in METHODS.items() if not {MPI, NCCL} & method.needs)
WITHOUT_MPI = """
import sys

class Refused:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "mpi4py":
            raise AssertionError("mpi4py is imported")

sys.meta_path.insert(0, Refused())
"""
# The words of the last rank are not those of its gradient.
FLIPPED = """
from mpisign.coding import coding

def flipped(gradient, words, sign=coding.sign, **named):
    sign(gradient, words, **named)
    words[:1] ^= 0b111

if rank == 2:
    coding.sign = flipped
"""
JOBS = {
    "table": Job(TINY),
    "overlap": Job((*TINY, "--schedule", "overlap", "--trace", "--methods", ",".join(ABLE), "--tie", "random",
                    "--adversaries", "1")),
    "sweep": Job(("--sizes", "4:4K:32", "--iterations", "3")),
    "asked for MPI": Job((*TINY, "--methods", "mpi,gloo")),
    "wrong words": Job((*TINY, "--methods", "gloo,vote-alltoall-gloo"), before=FLIPPED),
}  # fmt: skip


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Return what ranks are told so that importing mpi4py fails."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "sitecustomize.py").write_text(WITHOUT_MPI)
    return {"PYTHONPATH": f"{folder}:{ROOT}"}


@pytest.fixture(scope="module")
def ran(alone, tmp_path_factory):
    """Return how each of JOBS ended and its record, by its name."""
    folders = {name: tmp_path_factory.mktemp("run") for name in JOBS}
    jobs = [Job((*job.arguments, "--output", "r.jsonl"), folders[name], job.before) for name, job in JOBS.items()]
    ended = start(RANKS, "mpisign.bench.__main__", jobs, by=torchrun, **alone)
    read = [records.read(path) if (path := folder / "r.jsonl").exists() else None for folder in folders.values()]
    return dict(zip(JOBS, zip(ended, read, strict=True), strict=True))


def test_rows_over_process_groups_run_and_those_over_mpi_are_named(ran):
    ended, kept = ran["table"]
    assert ended.returncode == 0, ended.stderr
    found = {row["method"]: row for row in summarize(kept).rows}
    assert tuple(found) == tuple(name for name in ABLE if not METHODS[name].unasked)
    assert {row["wrong"] for row in found.values()} == {0, None}
    assert kept.head["baseline"] == "gloo"
    assert kept.end["replicas_identical"]
    printed = " ".join(ended.stdout.split())
    absent = printed[printed.index("Not run:") : printed.index(": started by torchrun: no MPI")]
    for name, method in METHODS.items():
        if MPI in method.needs:
            assert kept.head["skipped"][name] == "started by torchrun: no MPI"
            assert name in absent.replace(",", "").split()
    facts = kept.head["machine"]
    assert (facts["launcher"], facts["mpi"], facts["ranks"], facts["nodes"]) == ("torchrun", "none", RANKS, 1)
    assert "software: no MPI, ranks started by torchrun" in printed
    assert kept.head["network"]["by"] == "Gloo"
    assert kept.head["network"]["bandwidth"] > 0
    assert "GB/s by Gloo over lo" in printed


@pytest.mark.parametrize("name", ["overlap", "sweep"])
def test_other_kinds_of_runs(ran, name):
    ended, kept = ran[name]
    assert ended.returncode == 0, ended.stderr
    assert {row["wrong"] for row in summarize(kept).rows} == {0, None}


def test_a_row_over_mpi_is_refused_if_it_is_asked_for(ran):
    ended, kept = ran["asked for MPI"]
    assert ended.returncode == 2  # on all ranks
    (line,) = our_lines(ended.stderr)
    assert line.endswith("methods: mpi cannot run: started by torchrun: no MPI")
    assert kept is None


def test_wrong_words_are_counted(ran):
    ended, kept = ran["wrong words"]
    assert ended.returncode == 1
    assert "wrong coordinates" in ended.stderr
    wrong = {row["method"]: row["wrong"] for row in summarize(kept).rows}
    assert wrong["gloo"] == 0
    assert wrong["vote-alltoall-gloo"] == 3  # in each round


def test_training_its_default_method_and_going_on(alone, tmp_path):
    subprocess.run([sys.executable, "-m", "mpisign", "photos", tmp_path / "data", "--validate", "1/5"],
                   check=True, capture_output=True)  # fmt: skip
    asked = ("--data", str(tmp_path / "data"), "--model", "tiny", "--image-size", "32", "--batch-size", "4",
             "--workers", "0", "--output", str(tmp_path / "run"))  # fmt: skip
    begun, gone_on, refused = start(
        RANKS, "mpisign.train.__main__",
        [Job((*asked, "--epochs", "1")), Job((*asked, "--epochs", "2", "--resume")),
         Job((*asked, "--method", "vote-alltoall"))], by=torchrun, **alone,
    )  # fmt: skip
    assert begun.returncode == gone_on.returncode == 0, begun.stderr + gone_on.stderr
    assert "resumed from" in gone_on.stdout
    assert '"method": "vote-alltoall-gloo"' in (tmp_path / "run" / "log.jsonl").read_text()
    assert refused.returncode == 2
    (line,) = our_lines(refused.stderr)
    assert line.endswith("method: vote-alltoall cannot run: started by torchrun: no MPI")


def test_the_doctor(alone, tmp_path):
    ended = torchrun(RANKS, "-m", "mpisign.doctor", cwd=tmp_path, **alone)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"launcher: torchrun, {RANKS} rank(s) on 1 node(s)" in ended.stdout
    assert "MPI library: none is needed" in ended.stdout
    assert not re.search("^error", ended.stdout, re.M)


def test_what_the_parser_refuses_is_told_once(alone, tmp_path):
    ended = torchrun(RANKS, "-m", "mpisign.bench", "--iterations", "0", cwd=tmp_path, **alone)
    assert ended.returncode == 1  # torchrun's own; it names the ranks'
    assert re.search(r"exitcode *: 2 ", ended.stderr)
    (line,) = [line for line in our_lines(ended.stderr) if "FAILED" not in line]  # which is torchrun's
    assert "0 is less than 1" in line
    assert list(tmp_path.iterdir()) == []


BROKEN = """
import os, sys
from mpisign.bench import __main__ as bench
from mpisign.voting import truth

def broken(*arguments):
    1 / 0

if os.environ["RANK"] == "1":
    truth.wrong_signs = broken
sys.exit(bench.main(sys.argv[1:]))
"""


def test_a_rank_that_raises_ends_the_job_with_its_traceback(alone, tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    ended = torchrun(RANKS, "broken.py", *TINY, "--output", "r.jsonl", cwd=tmp_path, timeout=120, **alone)
    assert ended.returncode != 0
    assert re.findall(r"rank \d failed", ended.stderr) == ["rank 1 failed"]  # and not what the others met of it
    assert "ZeroDivisionError" in ended.stderr
    assert not (tmp_path / "r.jsonl").exists()


def test_a_killed_rank_ends_the_job(alone, tmp_path):
    record = str(tmp_path / "r.jsonl")
    command = by_torchrun(RANKS, "-m", "mpisign.bench", *TINY, "--iterations", "100000", "--output", record)
    with running(command, tmp_path, **alone) as job:
        while "methods" not in job.stderr.readline():  # it says so when it starts
            assert job.poll() is None
        time.sleep(5)
        kill_a_rank(record, "torch.distributed.run")
        job.communicate(timeout=60)
    assert job.returncode != 0
    assert list(tmp_path.iterdir()) == []
