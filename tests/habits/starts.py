"""How ranks are started: tried by test_starts."""

from features import plain
from way import Table, Way, learn, network

STARTING = Table()


@STARTING.works("`torchrun`, or `srun` with the variables of `env://`", "no MPI is needed: `mpisign.VoteState()`")
def torchrun(way: Way) -> float:
    return plain(way)


@STARTING.works("`torch.multiprocessing.spawn`", "`mpisign.VoteState()`, as above")
def spawned(way: Way) -> float:
    return plain(way)


@STARTING.refused("`torchrun`, and `MPI.COMM_WORLD` handed in", "each rank is alone there: hand in nothing, or start "
                  "with mpirun", says="mpirun|torchrun|VoteState\\(\\)")  # fmt: skip
def comm_world_under_torchrun(way: Way) -> float:
    from mpi4py import MPI

    return learn(way, way.parallel(network(), vote={"where": MPI.COMM_WORLD}))


@STARTING.refused("something else handed in", "a communicator of mpi4py, or a process group", says="process group")
def something_else(way: Way) -> float:
    return learn(way, way.parallel(network(), vote={"where": "world"}))
