import pytest

from mpisign.ranks import launch, torchrun

RENDEZVOUS = {"RANK": "2", "WORLD_SIZE": "3", "MASTER_ADDR": "here", "MASTER_PORT": "1"}
TORCHRUN = RENDEZVOUS | {"TORCHELASTIC_RUN_ID": "x"}
MPICH, OPEN_MPI = {"PMI_SIZE": "4", "PMI_RANK": "1"}, {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1"}
SRUN = {"SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "2"}


@pytest.mark.parametrize(
    ("variables", "launched"),
    [
        ({}, ("python", 1, 0)),
        (TORCHRUN, ("torchrun", 3, 2)),
        (TORCHRUN | SRUN, ("torchrun", 3, 2)),  # srun torchrun
        (TORCHRUN | MPICH, ("torchrun", 3, 2)),  # mpirun torchrun
        (RENDEZVOUS, ("env://", 3, 2)),
        (RENDEZVOUS | SRUN, ("env://", 3, 2)),
        (RENDEZVOUS | MPICH, ("mpirun", 4, 1)),  # a job script has exported them, and then calls mpirun
        (RENDEZVOUS | OPEN_MPI, ("Open MPI's mpirun", 4, 1)),
        (SRUN | {"MASTER_ADDR": "here", "MASTER_PORT": "1"}, ("srun", 3, 2)),
        (RENDEZVOUS | {"MASTER_ADDR": ""}, ("python", 1, 0)),
    ],
)
def test_who_has_started_this_process(monkeypatch, variables, launched):
    known = {*TORCHRUN, *(name for names in launch.LAUNCHERS.values() for name in names)}
    for name in known:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launch.launched() == launched
    assert torchrun.launcher() == (launched[0] if launched[0] in torchrun.LAUNCHERS else None)
