"""What the facts of a network say: made-up ones, for the machines that have several networks are others'."""

import pytest
from made import kept, made_run

from mpisign.report import charts, network, records
from mpisign.report.notes import notes, remarks
from mpisign.report.summary import summarize

FAST, SLOW = {"mlx5_0:1": 100.0, "ib0": 100.0, "eth0": 1.0}, {"eth0": 1.0}


def facts(**changed):
    """Facts of two nodes where all is well: MPI's bytes go over InfiniBand, and Gloo's over IP on it."""
    sound = {
        "by": "MPI", "transport": "ch4:ucx", "drivers": ["cma", "ib", "ib_mlx5"], "settings": {}, "nodes": 2,
        "links": [FAST], "gloo": ["ib0"], "pair": [0, 8], "latency_s": 1.24e-6, "bandwidth": 11.3e9,
        "carried": ["mlx5_0:1"],
    }  # fmt: skip
    return sound | changed


BY_ETHERNET = {"bandwidth": 0.117e9, "carried": ["eth0"]}
FAULTS = {
    "UCX, over Ethernet": (facts(**BY_ETHERNET), (
        "MPI sends 0.936 Gbit/s between nodes over eth0 1 Gbit/s, though there is a link of 100 Gbit/s, mlx5_0:1: set "
        "UCX_NET_DEVICES=mlx5_0:1")),
    "UCX has no driver": (
        facts(**BY_ETHERNET, drivers=["cma"]), "mlx5_0:1: UCX has loaded no driver for it (but cma): install libibver"),
    "OFI": (facts(**BY_ETHERNET, transport="ch4:ofi"), "mlx5_0:1: set FI_PROVIDER=verbs, or FI_TCP_IFACE=ib0 for TCP"),
    "OFI, of a fabric with interfaces alone": (
        facts(**BY_ETHERNET, transport="ch4:ofi", links=[{"hsn0": 200.0, "eth0": 1.0}]),
        "set FI_PROVIDER to the fabric's own, or FI_TCP_IFACE=hsn0"),
    "Open MPI": (
        facts(**BY_ETHERNET, transport="pml ob1, btl self tcp"),
        "OMPI_MCA_pml=ucx and UCX_NET_DEVICES=mlx5_0:1, or OMPI_MCA_btl_tcp_if_include=ib0 for TCP"),
    "another library": (facts(**BY_ETHERNET, transport="unknown"), "FI_PROVIDER (see your MPI's manual)"),
    "Gloo, under torchrun": (
        facts(**BY_ETHERNET, by="Gloo", transport="sockets"), "Gloo sends 0.936 Gbit/s between nodes over eth0 1 Gbi"),
    "the kernel does not count": (
        facts(bandwidth=0.117e9, carried=[]), "MPI sends 0.936 Gbit/s between nodes, though there is a link of 100"),
    "one stream of TCP on the fast link": (
        facts(bandwidth=2e9, carried=["ib0"]), "MPI sends 16 Gbit/s between nodes over ib0 100 Gbit/s, though"),
    "a slower link of near speed": (
        facts(bandwidth=4.5e9, carried=["eth0"], links=[{"mlx5_0:1": 100.0, "eth0": 40.0}]), "sends 36 Gbit/s"),
    "no speed of the link that was used": (
        facts(bandwidth=1e9, carried=["eth0"], links=[{"mlx5_0:1": 100.0, "eth0": None}]), "over eth0, though"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fast_link_that_lies_idle_is_a_warning(fault):
    known, said = FAULTS[fault]
    assert said in network.slow(known)


@pytest.mark.parametrize(
    "known",
    [
        facts(),
        facts(bandwidth=3.2e9, carried=["ib0"]),  # just above a quarter
        facts(nodes=1, bandwidth=1e6),  # memory
        facts(pair=None),
        facts(bandwidth=1e6, links=[{"eth0": None}]),  # nothing is known
        facts(bandwidth=1e6, links=[FAST, {}]),  # nor of one node
        facts(**BY_ETHERNET, links=[FAST, SLOW]),  # the other node has no faster link
        facts(bandwidth=9e9, carried=["ib0"], links=[{"mlx5_0:1": 100.0, "ib0": None}]),
    ],
)
def test_no_warning_where_none_is_due(known):
    assert network.slow(known) is None


def test_gloo_on_a_slow_interface_is_a_warning():
    said = "Gloo takes eth0, 1 Gbit/s, though ib0 has 100 Gbit/s: set GLOO_SOCKET_IFNAME=ib0"
    assert network.slow_gloo(facts(gloo=["eth0"])) == said
    assert network.slow_gloo(facts(gloo=["ib0", "eth0"])) == said
    for fine in ({}, {"gloo": ["eth0"], "nodes": 1}, {"gloo": ["unknown"]}, {"gloo": ["eth0"], "links": [SLOW]},
                 {"gloo": ["eth0"], "links": [{"mlx5_0:1": 100.0, "eth0": 1.0}]}):  # fmt: skip
        assert network.slow_gloo(facts(**fine)) is None


def test_what_is_told():
    assert network.told(facts(settings={"UCX_TLS": "rc"})) == (
        "between ranks 0 and 8, on 2 nodes: 1.24 us, 11.3 GB/s by MPI (ch4:ucx, UCX_TLS=rc) over mlx5_0:1 100 Gbit/s; "
        "links: mlx5_0:1 100 Gbit/s, ib0 100 Gbit/s, eth0 1 Gbit/s; Gloo's: ib0"
    )
    assert network.told(facts(nodes=1, gloo=["lo"], carried=[])) == (
        "between ranks 0 and 8, on one node, whose memory is the network: 1.24 us, 11.3 GB/s by MPI (ch4:ucx)"
    )
    assert network.told(facts(nodes=1, pair=None, by="Gloo")) == "one rank, which sends nothing by Gloo"
    assert "links: eth0 of unknown speed or, on other nodes, none that are up;" in network.told(
        facts(links=[{"eth0": None}, {}])
    )


def with_network(**changed):
    run = made_run(nodes=2)
    run.head["network"] = facts(**changed)
    return run


def test_notes_of_a_record_and_of_an_older_one(tmp_path):
    run = records.read(kept(with_network(**BY_ETHERNET, gloo=["eth0"]), tmp_path / "r.jsonl"))
    said = [line for line in notes(summarize(run)) if "network: " in line]
    assert said == [
        f"WARNING: network: {network.slow(run.head['network'])}",
        f"WARNING: network: {network.slow_gloo(run.head['network'])}",
        f"network: {network.told(run.head['network'])}",
    ]
    assert [remark.warning for remark in remarks(summarize(with_network())) if "network" in remark.text] == [False]
    assert not any("network" in line for line in notes(summarize(made_run())))


def test_runs_over_other_networks_are_not_compared():
    assert records.differences(with_network(), with_network(latency_s=9e-6, carried=["ib0"]), made_run(nodes=2)) == []
    differ = records.differences(with_network(), with_network(settings={"UCX_TLS": "tcp"}, transport="ch4:ofi"))
    assert differ == ["transport: ch4:ucx and ch4:ofi", "settings: {} and {'UCX_TLS': 'tcp'}"]
    one, two = with_network(gloo=["lo"]), with_network()
    one.head["machine"] |= {"ranks": 1, "nodes": 1}
    assert charts.misfit([one, two]) is None
