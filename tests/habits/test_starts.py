"""However ranks are started, the votes are the same bits; and ranks that are not DDP's are refused."""

import subprocess
import sys

import pytest
from launch import ROOT, environment, run, skip_if_quick, torchrun, written
from table import STARTS
from test_habits import RANKS

HERE = ROOT / "tests" / "habits"
SAME = ("plain", "heads_of_their_own", "join", "divided_anew", "nan_batch", "unused_rows", "bfloat16")
REFUSED = [habit for habit in STARTS if habit.verdict == "refused"]


def read(file, ended):
    return {line["name"]: line["voted"] for line in written(file, ended)}


@pytest.fixture(scope="module")
def under_torchrun(tmp_path_factory):
    file = tmp_path_factory.mktemp("torchrun") / "tried.jsonl"
    names = [habit.name for habit in REFUSED]
    return read(file, torchrun(RANKS, str(HERE / "ranks.py"), str(file), *SAME, "torchrun", *names))


@pytest.fixture(scope="module")
def under_mpirun(tmp_path_factory):
    file = tmp_path_factory.mktemp("mpirun") / "tried.jsonl"
    return read(file, run(RANKS, str(HERE / "ranks.py"), str(file), *SAME))


def weights(ranks):
    assert [rank["raised"] for rank in ranks] == [""] * RANKS
    [digest] = {rank["digest"] for rank in ranks}
    assert digest
    return digest


@pytest.mark.parametrize("name", SAME)
def test_torchrun_and_mpirun_give_the_same_weights(under_torchrun, under_mpirun, name):
    assert weights(under_torchrun[name]) == weights(under_mpirun[name])


def test_spawned_ranks_give_the_same_weights(under_torchrun, tmp_path):
    skip_if_quick()
    command = [sys.executable, str(HERE / "spawned.py"), str(tmp_path / "tried.jsonl")]
    ended = subprocess.run(
        command, env=environment(OMP_NUM_THREADS="1"), capture_output=True, text=True, timeout=240, check=False
    )
    assert ended.returncode == 0, ended.stderr
    spawned = read(tmp_path / "tried.jsonl", ended)["spawned"]
    assert weights(spawned) == weights(under_torchrun["torchrun"]) == weights(under_torchrun["plain"])


@pytest.mark.parametrize("habit", REFUSED, ids=lambda habit: habit.name)
def test_other_ranks_are_refused(under_torchrun, habit):
    for rank in under_torchrun[habit.name]:
        assert habit.says.search(rank["raised"]), rank["raised"] or "nothing was raised"
