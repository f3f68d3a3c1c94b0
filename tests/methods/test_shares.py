"""Collective: run under mpirun. The mean of which each rank makes its share, in bf16."""

import math

import numpy as np
import pytest
import torch

from mpisign.methods.shares import CHUNK, Shares
from mpisign.methods.table import METHODS
from mpisign.ranks.patience import Patient

pytestmark = pytest.mark.mpi


def vectors(P, n):
    return [torch.randn(n, generator=torch.Generator().manual_seed(100 * n + rank)) for rank in range(P)]


def wanted(vectors):
    """Round what is sent, sum in float64, and round the mean."""
    sent = [vector.to(torch.bfloat16).double() for vector in vectors]
    return (sum(sent) / len(sent)).float()


@pytest.mark.parametrize("patient", [False, True])
def test_it_is_the_mean_of_what_is_sent_rounded_once(comm, patient):
    own = Patient(comm.Dup())
    own.patient, shares, P = patient, Shares(comm.size, comm.rank), comm.size
    for n in (65, 0, 1, 3 * P * CHUNK + 1, 64, 1):  # buffers grow, and what is left in them is not sent
        ranks = vectors(P, n)
        mine = ranks[comm.rank].clone()
        shares.mean(own, mine)
        mean = wanted(ranks)
        # Half a unit in the last place; and what float32 sums lose, where terms cancel.
        assert ((mine - mean).abs() <= 2.0**-8 * mean.abs() + 2.0**-20).all(), n
        assert (mine == mine.to(torch.bfloat16)).all()
        digests = comm.allgather(mine.numpy().tobytes())
        assert len(set(digests)) == 1
    own.Free()


def test_what_is_not_finite_stays_so(comm):
    vector = torch.ones(70)
    vector[[0, 33, 69]] = torch.tensor([math.nan, math.inf, -math.inf]) if comm.rank == 0 else 1.0
    Shares(comm.size, comm.rank).mean(comm, vector)
    assert vector[0].isnan()
    assert vector[33] == math.inf
    assert vector[69] == -math.inf
    assert torch.isfinite(vector).sum() == 67


class Counting:
    """A communicator that counts what its collectives carry to and from other ranks."""

    def __init__(self, comm):
        self.comm, self.sent, self.received = comm, 0, 0

    def Alltoallv(self, sent, received):
        for name, (words, counts, *_) in (("sent", sent), ("received", received)):
            others = sum(counts) - counts[self.comm.rank]
            setattr(self, name, getattr(self, name) + others * words.itemsize)
        self.comm.Alltoallv(sent, received)

    def Allgather(self, _, words):
        others = words.nbytes * (self.comm.size - 1) // self.comm.size
        self.sent, self.received = self.sent + others, self.received + others
        self.comm.Allgather(_, words)


@pytest.mark.parametrize("n", [1, 63, 64, 1001])
def test_it_sends_what_is_booked(comm, n):
    counting = Counting(comm)
    Shares(comm.size, comm.rank).mean(counting, torch.ones(n))
    booked = METHODS["bf16-mpi"].traffic([(n,)], "positive", [0] * comm.size)
    assert booked.shape == (comm.size, 2)
    assert np.array_equal(booked[comm.rank], [counting.sent, counting.received])
    if n % comm.size == 0:
        assert np.array_equal(booked, METHODS["bf16"].traffic([(n,)], "positive", [0] * comm.size))
