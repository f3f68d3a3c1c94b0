"""The scripts in slurm/ on a real slurmctld; `make test-slurm` runs this."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import cluster
import pytest
import torch

from mpisign.train import checkpoint

ROOT = Path(__file__).parent.parent.parent
SECOND = Path(f"{sys.prefix}-second")  # Open MPI beside MPICH: see the Makefile
# What of the header has no meaning on this machine: two tasks, no GPUs.
HERE = ("--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1", "--gres=none", "--exclusive=user", "--time=10")
SMALL = ("--model", "tiny", "--image-size", "32")
TRAIN = (*SMALL, "--batch-size", "4", "--workers", "1", "--lr", "1e-3", "--warmup-epochs", "1")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    why = cluster.lacking()
    if why:
        pytest.skip(f"no Slurm here: {why}")
    with cluster.cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


class Job:
    """A submitted job; `folder` is where it was submitted."""

    def __init__(self, slurm, folder, script, *options, sbatch=(), **environment):
        self.folder, self.environment = folder, slurm | {"VENV": sys.prefix} | environment
        command = ["sbatch", "--parsable", *HERE, *sbatch, ROOT / "slurm" / script, *options]
        self.number = self.tell(*command).strip()

    def tell(self, *command):
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=True
        )
        return done.stdout

    def facts(self):
        return dict(re.findall(r"(\w+)=(\S*)", self.tell("scontrol", "-o", "show", "job", self.number)))

    @property
    def output(self):
        return "".join(path.read_text() for path in self.folder.glob("slurm-*.out"))

    def until(self, true, seconds=120):
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, f"{self.facts()}\n{self.output}"
            time.sleep(0.2)

    def end(self, seconds=180):
        """Wait for the end of the job; return its state and exit code."""
        self.until(lambda: self.facts()["JobState"] in ENDED, seconds)
        facts = self.facts()
        return facts["JobState"], int(facts["ExitCode"].split(":")[0])


def lines(folder, kind):
    (log,) = folder.glob("runs/*/log.jsonl")
    return [line for line in map(json.loads, log.read_text().splitlines()) if line["type"] == kind]


def whole(folder):
    """Check that no file is half-written; return the names of the checkpoints."""
    assert not list(folder.glob("runs/*/.*"))
    found = sorted(folder.glob("runs/*/checkpoint-*"))
    for path in found:
        assert {file.name for file in path.iterdir()} == {checkpoint.SUMS, "model.pt", "rank-0.pt", "rank-1.pt"}
        assert checkpoint.damage(path) is None
        for file in path.glob("*.pt"):
            torch.load(file, weights_only=True)
    return [path.name for path in found]


@pytest.mark.parametrize("launch", ["srun --mpi=pmi2", f"{sys.prefix}/bin/mpirun -n 2"])
def test_bench_prints_the_table(slurm, tmp_path, launch):
    job = Job(
        slurm, tmp_path, "bench.sh", *SMALL, "--iterations", "6", "--methods", "gloo,vote-alltoall", LAUNCH=launch
    )
    assert job.end() == ("COMPLETED", 0), job.output
    assert "tiny, 129,240 parameters" in job.output
    assert "; 2 ranks, 6 iterations" in job.output
    assert len(list(tmp_path.glob("results/*/*.jsonl"))) == 1


def test_training_is_signalled_requeued_and_goes_on(slurm, photos, tmp_path):
    job = Job(slurm, tmp_path, "imagenet.sh", *TRAIN, "--epochs", "40", IMAGENET=str(photos))
    job.until(lambda: "epoch 2/40" in job.output)
    job.tell("scancel", "--batch", "--signal=USR1", job.number)  # what --signal=B:USR1@120 does in time
    job.until(lambda: job.facts()["Restarts"] == "1")
    left = whole(tmp_path)[-1]
    assert "told to stop: checkpoint left in" in job.output
    assert job.end() == ("COMPLETED", 0), job.output
    assert f"{left}, epoch" in job.output
    assert job.output.count("resumed from") == 1
    assert [line["step"] for line in lines(tmp_path, "iteration")] == list(range(1, 40 * 8 + 1))
    assert [line["epoch"] for line in lines(tmp_path, "epoch")] == list(range(1, 41))
    assert whole(tmp_path)[-1] == "checkpoint-00000320"


def test_a_job_whose_ranks_were_killed_goes_on_when_it_is_put_back(slurm, photos, tmp_path):
    job = Job(slurm, tmp_path, "imagenet.sh", *TRAIN, "--epochs", "100000", IMAGENET=str(photos))
    job.until(lambda: "epoch 2/" in job.output)
    # As when a node's memory is full; their shared memory stays.
    job.tell("pkill", "-KILL", "-f", rf"^{sys.prefix}/bin/python -m mpisign\.train .*imagenet-{job.number} ")
    assert job.end()[0] == "FAILED"
    job.tell("scontrol", "requeue", job.number)
    job.until(lambda: "resumed from" in job.output)
    epochs = job.output.count(" top-1 ")
    job.until(lambda: job.output.count(" top-1 ") > epochs)
    job.tell("scancel", job.number)
    assert job.end()[0] == "CANCELLED"
    whole(tmp_path)


def test_scancel_leaves_no_half_written_file_and_no_requeue(slurm, photos, tmp_path):
    job = Job(slurm, tmp_path, "imagenet.sh", *TRAIN, "--epochs", "100000", IMAGENET=str(photos))
    job.until(lambda: "epoch 3/" in job.output)
    job.tell("scancel", job.number)
    assert job.end()[0] == "CANCELLED"
    job.until(lambda: "told to stop: checkpoint left in" in job.output, 30)
    log = str(next(tmp_path.glob("runs/*")))
    job.until(lambda: f"runs/{Path(log).name}" not in processes(), 30)
    assert whole(tmp_path)
    assert len(lines(tmp_path, "iteration")) >= 3 * 8
    time.sleep(3)
    assert job.facts()["JobState"] == "CANCELLED"
    assert job.facts()["Restarts"] == "0"


def processes():
    return subprocess.run(["ps", "-wweo", "args"], capture_output=True, text=True, check=True).stdout


def test_an_array_has_a_folder_and_a_seed_each(slurm, photos, tmp_path):
    job = Job(slurm, tmp_path, "imagenet.sh", *TRAIN, "--epochs", "1", sbatch=["--array=3-4"], IMAGENET=str(photos))
    job.until(lambda: job.output.count("epoch 1/1:") == 2)
    assert {path.name for path in tmp_path.glob("runs/*")} == {f"imagenet-{job.number}-{task}" for task in (3, 4)}
    for task in (3, 4):
        log = (tmp_path / "runs" / f"imagenet-{job.number}-{task}" / "log.jsonl").read_text()
        assert json.loads(log.splitlines()[0])["config"]["seed"] == task


@pytest.mark.parametrize(
    ("environment", "said", "code"),
    [
        ({"IMAGENET": "/nowhere"}, "data: /nowhere/train is no folder of class folders", 2),
        ({"IMAGENET": ""}, "IMAGENET is not set", 2),
        ({"VENV": "/nowhere", "IMAGENET": "/"}, "no mpisign in /nowhere/bin/python", 2),
        ({"LAUNCH": "srun --mpi=none", "IMAGENET": "/"}, "srun was to start 2 ranks, but MPI sees 1", 2),
    ],
    ids=["data", "unset", "environment", "singly"],
)
def test_what_is_missing_is_told_in_one_line(slurm, tmp_path, environment, said, code):
    job = Job(slurm, tmp_path, "imagenet.sh", *TRAIN, **environment)
    assert job.end() == ("FAILED", code), job.output
    ours = [
        line for line in job.output.splitlines() if not re.match(r"srun: |/var/.*: /nowhere|.*/slurm_script: ", line)
    ]
    assert len(ours) == 1, job.output
    assert said in ours[0]
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(not SECOND.exists(), reason="no environment with Open MPI")
def test_open_mpi_by_pmix(slurm, photos, tmp_path):
    job = Job(slurm, tmp_path, "imagenet.sh", *TRAIN, "--epochs", "1", IMAGENET=str(photos), VENV=str(SECOND),
              LAUNCH="srun --mpi=pmix")  # fmt: skip
    assert job.end() == ("COMPLETED", 0), job.output
    assert "epoch 1/1:" in job.output
    assert whole(tmp_path) == ["checkpoint-00000008"]
