"""One start of mpirun tests every P up to its own: each collective test runs on sub-communicators of 1, 2, ... ranks.

A rank that has no part in a test skips it and waits, asleep, until the others are through. Many ranks (16) are tested
as they are.
"""

import pytest

EVERY = 4  # ranks, up to which every smaller number is tested too


def pytest_generate_tests(metafunc):
    if "comm" in metafunc.fixturenames:
        world = metafunc.config.ranks
        size = 1 if world is None else world.size
        sizes = range(1, size + 1) if size <= EVERY else [size]
        metafunc.parametrize("comm", sizes, indirect=True, ids=lambda P: f"P={P}", scope="module")


@pytest.fixture(scope="module")
def comm(request):
    from mpi4py import MPI

    world, P = MPI.COMM_WORLD, request.param
    part = world.Split(0 if world.rank < P else MPI.UNDEFINED, world.rank)
    if part == MPI.COMM_NULL:
        pytest.skip(f"rank {world.rank} has no part in a test of {P} ranks")
    yield part
    part.Free()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    """Keep all ranks in step, outside of the time limit of a test: the ranks that run it have one."""
    result = yield
    world = item.config.ranks
    if world is not None and "comm" in item.fixturenames:
        from mpisign.ranks.patience import quiet_barrier

        quiet_barrier(world)
    return result
