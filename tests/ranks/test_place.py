import pytest
import torch
from launch import run
from made import made_run

from mpisign.ranks import launch, machine, place
from mpisign.report import table
from mpisign.report.notes import notes
from mpisign.report.summary import summarize


@pytest.mark.parametrize(("ranks", "gpus", "share"), [(2, 0, False), (2, 2, False), (2, 2, True), (4, 1, True)])
def test_ranks_have_a_gpu_each_or_share_them_if_asked(ranks, gpus, share):
    place.check_gpus(ranks, gpus, share=share)


@pytest.mark.parametrize(
    ("ranks", "gpus", "share", "said"),
    [
        (4, 1, False, "4 ranks, but 1 CUDA device: start a rank a device; or --share-gpus"),
        (8, 4, False, "8 ranks, but 4 CUDA devices"),
        (2, 0, True, "share_gpus: there are no CUDA devices"),
    ],
)
def test_ranks_that_would_share_gpus_unasked_are_refused(ranks, gpus, share, said):
    with pytest.raises(ValueError, match=said):
        place.check_gpus(ranks, gpus, share=share)


def test_to_nccl_each_sharing_rank_is_a_host(monkeypatch):
    monkeypatch.delenv("NCCL_HOSTID", raising=False)
    ids = set()
    for rank in range(3):
        place.let_nccl_share(rank)
        ids.add(place.os.environ["NCCL_HOSTID"])
    assert len(ids) == 3


@pytest.mark.parametrize(
    ("trial", "said"),
    [
        ("print('claims'); print('works')", None),
        ("pass", "does not say"),
        ("raise OSError('no CUDA here')", "does not say"),
        ("print('claims', flush=True); import os; os.kill(os.getpid(), 11)", "a trial died of signal 11"),
        ("print('claims')", "a trial failed"),
        ("print('claims'); print('works', flush=True); import os; os.abort()", "a trial died of signal 6"),
        ("print('claims', flush=True); import time; time.sleep(60)", "did not end in 1 s"),
    ],
)
def test_a_wrong_claim_of_mpi_is_found_out_by_a_trial(trial, said):
    fault = place.device_memory_fault("cuda:0", trial, seconds=1.0 if "sleep" in trial else 60.0)
    assert fault is None if said is None else said in fault


def test_mpich_and_open_mpi_can_be_asked_for_device_memory():
    from mpi4py import MPI

    assert machine.cuda_aware() is not None or MPI.get_vendor()[0] not in ("MPICH", "Open MPI")


WITHIN_A_JOB = """
from mpi4py import MPI
from mpisign.ranks import place
found = MPI.COMM_WORLD.gather(place.device_memory_fault("cpu"))
if MPI.COMM_WORLD.rank == 0:
    print(MPI.COMM_WORLD.size, found)
"""


def test_the_trial_is_a_job_of_its_own(tmp_path):
    ended = run(2, "-c", WITHIN_A_JOB, cwd=tmp_path)
    assert ended.stdout.strip() == "2 [None, None]", ended.stderr


OUT_OF_MEMORY = """
import sys
import torch
from mpi4py import MPI
from mpisign.bench import __main__ as bench, measure

def backward(trial):
    if MPI.COMM_WORLD.rank == 1:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has too little")
    MPI.COMM_WORLD.Barrier()

measure.Trial.backward = backward
sys.exit(bench.main(["--model", "tiny", "--image-size", "32", "--output", "r.jsonl"]))
"""


def test_a_rank_out_of_device_memory_ends_the_job_with_one_line(tmp_path):
    ended = run(2, "-c", OUT_OF_MEMORY, cwd=tmp_path)
    assert ended.returncode != 0
    (line,) = [line for line in ended.stderr.splitlines() if "CUDA" in line]
    assert line == (
        "mpisign.bench: error: rank 1: CUDA out of memory. Tried to allocate 2 GiB. "
        "Fewer pictures a rank need less (--batch-size)"
    )
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "r.jsonl").exists()


def test_other_faults_pass(monkeypatch):
    with pytest.raises(RuntimeError, match="else"), place.telling_of_memory():
        raise RuntimeError("something else")
    with pytest.raises(launch.JobError), place.telling_of_memory():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")


def test_the_title_says_that_gpus_are_shared():
    assert "shared" not in table.title(made_run(gpus=2))
    assert "2 ranks on 1 shared GPU (NOT A CLUSTER'S TIMES)" in table.title(made_run(gpus=1))
    said = "\n".join(notes(summarize(made_run(gpus=2, device_memory_fault="it died"))))
    assert "votes over MPI go by way of the host: it died" in said
    assert "from device memory" in "\n".join(notes(summarize(made_run(gpus=2, device_memory_fault=None))))
