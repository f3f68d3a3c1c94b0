"""Under mpirun every rank runs pytest: rank 0 reports, and the first failure on any rank ends all of them."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")

sys.path.insert(0, str(Path(__file__).parent))


def under_mpi(config):
    return config.getoption("--with-mpi", False) or config.getoption("--only-mpi", False)


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    config.ranks = None
    if under_mpi(config):
        from mpi4py import MPI

        config.ranks = MPI.COMM_WORLD
        if config.ranks.rank:
            config.pluginmanager.getplugin("terminalreporter")._tw._file = open(os.devnull, "w")  # noqa: SIM115


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
    return report


@pytest.fixture(scope="session")
def comm():
    from mpi4py import MPI

    return MPI.COMM_WORLD
