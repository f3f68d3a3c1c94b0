"""Collective: run under mpirun. The buckets that DDP makes, and when each is ready."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mpisign.bench.readiness import Readiness
from mpisign.bench.turn import Turn, play
from mpisign.methods.method import Terms
from mpisign.methods.pieces import Pieces
from mpisign.ranks.clock import Spans
from mpisign.ranks.group import process_group
from mpisign.workload import models

pytestmark = pytest.mark.mpi
RANKS = (1, 2)
MIB = 2**20


@pytest.fixture(scope="module", autouse=True)
def torch_distributed(comm):
    torch.set_num_threads(1)
    with process_group(comm, "gloo", one_node=True):
        yield


def bytes_of_buckets(bucket_mb):
    """Return those of a model of five layers of 1 MiB, from the second step on."""
    turn = Turn(Spans(), Pieces(Terms()))
    model = nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in range(5)))
    replica = models.parallel(model, bucket_mb)
    replica.register_comm_hook(turn, play)
    for _ in range(2):
        replica(torch.ones(1, 512)).sum().backward()
    assert len(turn.ready) == len(turn.buckets)
    assert turn.ready == sorted(turn.ready)
    return [bucket.tensor.nbytes for bucket in turn.buckets]


@pytest.mark.parametrize(
    ("bucket_mb", "sizes"), [(None, [MIB, 4 * MIB]), (25.0, [5 * MIB]), (2.0, [2 * MIB, 2 * MIB, MIB])]
)
def test_ddps_own_buckets_have_a_small_first_one(comm, bucket_mb, sizes):
    assert bytes_of_buckets(bucket_mb) == sizes


def bucket_of(n):
    return SimpleNamespace(tensor=torch.zeros(n))


def test_a_bucket_is_ready_at_the_slowest_ranks_median(comm):
    readiness, late = Readiness(), comm.rank / 10
    readiness.note([bucket_of(30)], [0.0, 0.9, 1.0])  # as DDP's first backward: other buckets
    for at in (0.2, 0.1, 0.8):
        readiness.note([bucket_of(10), bucket_of(20)], [5.0, 5.0 + 2 * (at + late), 7.0, 7.0])
    first, last = readiness.buckets(comm)
    assert (first["bytes"], last) == (40, {"bytes": 80, "ready": 1.0})
    assert first["ready"] == pytest.approx(0.2 + (comm.size - 1) / 10)
