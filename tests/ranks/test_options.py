import argparse

import pytest

from mpisign.ranks import launch, options


@pytest.mark.parametrize(
    ("text", "parsed"),
    [("4:4", (4,)), ("1K:64K", (1024, 4096, 16384, 65536)), ("6:100:2", (4, 12, 24, 48, 96)), ("1m:1M", (2**20,))],
)
def test_sizes(text, parsed):
    assert options.sizes(text) == parsed


@pytest.mark.parametrize("text", ["", "1K", "2K:1K", "1K:2K:1", "1:2:3:4", "K:M", "0:4", "-4:8", "1K:xM", "1.5K:2K"])
def test_nonsense_sizes_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="no range of sizes"):
        options.sizes(text)


def test_ranks_that_came_up_alone_are_noticed(monkeypatch):
    for names in launch.LAUNCHERS.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)
    assert launch.started_singly(1) is None
    monkeypatch.setenv("SLURM_NTASKS", "16")
    assert "16 ranks" in launch.started_singly(1)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")  # srun -n 1 in an allocation of 16
    assert launch.started_singly(1) is None
    monkeypatch.setenv("PMI_SIZE", "4")
    assert launch.started_singly(4) is None
    assert "mpirun -n 4" in launch.started_singly(1)
