"""Under mpirun every rank runs pytest: rank 0 reports, and the first failure on any rank ends all of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")

sys.path.insert(0, str(Path(__file__).parent))

import launch  # noqa: E402

OTHER_PROGRAMS = ("report/test_report.py", "report/test_trace.py", "benchmarks/test_gpu.py",
                  "benchmarks/test_reframe.py", "test_wheel.py")  # fmt: skip


def pytest_addoption(parser):
    parser.addoption(
        "--quick",
        action="store_true",
        help="make check: leave out what starts ranks, a browser or another program, or takes seconds",
    )
    parser.addoption("--as-started", action="store_true", help="test no fewer ranks than were started")


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of pictures in train/ and val/, of two classes."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    command = [sys.executable, "-m", "mpisign", "photos", folder, "--validate", "0.2"]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def under_mpi(config):
    return config.getoption("--with-mpi", False) or config.getoption("--only-mpi", False)


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    config.ranks = None
    launch.quick = config.getoption("--quick")
    if under_mpi(config):
        from mpi4py import MPI

        config.ranks = MPI.COMM_WORLD
        if config.ranks.rank:
            config.pluginmanager.getplugin("terminalreporter")._tw._file = open(os.devnull, "w")  # noqa: SIM115


def pytest_ignore_collect(collection_path, config):
    if config.getoption("--quick") and str(collection_path).endswith(OTHER_PROGRAMS):
        return True
    return None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    comm = item.config.ranks
    if report.failed and comm is not None and comm.size > 1:
        # The other ranks may be waiting in a collective for this one.
        print(
            f"rank {comm.rank} of {comm.size} failed {item.nodeid}\n{report.longreprtext}",
            file=sys.stderr,
            flush=True,
        )
        comm.Abort(1)
    if os.environ.get("MPISIGN_TEST_DURATIONS") and (comm is None or comm.rank == 0):
        under = "" if comm is None else f" ({comm.size} ranks)"
        with open(os.environ["MPISIGN_TEST_DURATIONS"], "a") as file:
            file.write(json.dumps([call.duration, f"{item.nodeid} {call.when}{under}"]) + "\n")
    return report


# One start of mpirun tests every P up to its own: a collective test runs on sub-communicators of 1, 2, ... ranks. A
# rank that has no part in a test skips it and waits, asleep, until the others are through.
EVERY = 4  # ranks, up to which every smaller number is tested too


def pytest_generate_tests(metafunc):
    if "comm" in metafunc.fixturenames:
        world = metafunc.config.ranks
        size = 1 if world is None else world.size
        wanted = getattr(metafunc.module, "RANKS", range(1, EVERY + 1))
        as_started = size > EVERY or metafunc.config.getoption("--as-started")
        sizes = [size] if as_started else [P for P in wanted if size >= P]
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
