"""Collective: run under mpirun. The network between ranks is measured, and all of them are told the same."""

import json
import time

import pytest

from mpisign.ranks import links, nodes, wires
from mpisign.report import network

pytestmark = pytest.mark.mpi


def test_a_ping_pong_has_sane_numbers(comm):
    began = time.perf_counter()
    facts = wires.network(comm, nodes.nodes_of(comm))
    assert time.perf_counter() - began < 20  # of about half a second, where nothing else runs
    assert comm.allgather(facts) == [facts] * comm.size
    assert json.loads(json.dumps(facts)) == facts
    assert facts["by"] == "MPI"
    assert facts["links"] == [links.links()]
    if comm.size == 1:
        assert facts["pair"] is None
        assert "latency_s" not in facts
        return
    assert facts["pair"] == [0, comm.size - 1]
    assert 1e-8 < facts["latency_s"] < 1
    assert 1e6 < facts["bandwidth"] < 1e12
    assert set(facts["carried"]) <= {links.LOOPBACK, *links.links()}
    assert network.told(facts).startswith(f"between ranks 0 and {comm.size - 1}, on one node, whose memory is the net")
    assert network.slow(facts) is network.slow_gloo(facts) is None


def test_the_first_rank_of_the_last_node_is_the_other_one(comm):
    facts = wires.network(comm, list(range(comm.size)))
    assert facts["nodes"] == comm.size
    assert facts["pair"] == ([0, comm.size - 1] if comm.size > 1 else None)
    assert ("links: " in network.told(facts)) == (comm.size > 1)
