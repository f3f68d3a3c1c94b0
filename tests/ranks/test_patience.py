"""Collective: run under mpirun. What a patient communicator starts, and how it is waited for."""

import os
import threading

import numpy as np
import pytest

from mpisign.ranks import patience
from mpisign.ranks.patience import Patient

pytestmark = pytest.mark.mpi
RANKS = (1, 3)


class Slow:
    """A request that is done when it has been tested so often, or is waited for; `tests` counts."""

    def __init__(self, done_after, at=None):
        self.done_after, self.at, self.tests, self.waited = done_after, at or {}, 0, False

    def Test(self):
        self.tests += 1
        self.at.get(self.tests, lambda: None)()
        return self.tests >= self.done_after

    def Wait(self):
        self.waited = True


@pytest.fixture
def patient(comm):
    patient = Patient(comm.Dup())
    patient.patient, patient.crowded = True, False
    yield patient
    patient.Free()


def test_a_wait_that_is_under_way_ends_by_blocking_once_nothing_computes(patient):
    request = Slow(1_000, at={10: lambda: setattr(patient, "computing", False)})
    patient.finish(request)
    assert request.waited
    assert request.tests <= 10 + Patient.LOOKS


def test_a_nap_ends_when_nothing_computes_any_more(patient, monkeypatch):
    """A nap of an hour, which a second thread ends: without that the test runs into its time limit."""
    monkeypatch.setattr(Patient, "NAPS", (3600.0, 3600.0))
    napping = threading.Event()
    request = Slow(1_000, at={Patient.LOOKS: napping.set})

    def end():
        assert napping.wait(60)
        patient.computing = False

    other = threading.Thread(target=end)
    other.start()
    patient.finish(request)
    other.join()
    assert request.waited


def test_nobody_blocks_while_something_computes(patient):
    patient.computing = False
    patient.computing = True
    request = Slow(50)
    patient.finish(request)
    assert not request.waited
    assert request.tests == 50


def test_ranks_that_share_cores_nap_to_the_end(patient):
    patient.crowded = True
    patient.computing = False
    request = Slow(50)
    patient.finish(request)
    assert not request.waited


def test_ranks_are_crowded_where_there_are_fewer_cores(comm, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {comm.rank})
    assert not patience.crowded(comm)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert patience.crowded(comm) == (comm.size > 1)


class Noting:
    """A communicator that notes which of its functions are called."""

    def __init__(self, comm):
        self.comm, self.called = comm, []

    def __getattr__(self, name):
        self.called.append(name)
        return getattr(self.comm, name)


def test_all_ranks_start_the_same_whatever_they_compute(comm):
    """A blocking collective on one rank does not match one that another rank has started."""
    own = comm.Dup()
    noting = Noting(own)
    patient = Patient(noting)
    patient.patient, P = True, comm.size
    noting.called.clear()
    for turn in range(4):
        patient.computing = (comm.rank + turn) % 2 == 0
        mine, rows = np.full(P, float(comm.rank)), np.empty((P, P))
        patient.Allgather(mine, rows)
        assert (rows == np.arange(P)[:, None]).all()
        patient.Alltoall(rows.T.copy(), rows)
        assert (rows == np.arange(P)[:, None]).all() == (P == 1)
        patient.Alltoallv([rows, np.full(P, P)], [rows.copy(), np.full(P, P)])
        patient.Allreduce(np.ones(3), mine[:3] if P >= 3 else np.empty(3))
        patient.Bcast(mine, root=P - 1)
        patient.Gather(mine, None if comm.rank else rows)
    assert noting.called
    collectives = [name for name in noting.called if name not in ("rank", "size")]
    assert all(name.startswith("I") for name in collectives), collectives
    own.Free()
