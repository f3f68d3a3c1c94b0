"""The links of a node, from a made-up /sys/class, and the settings that may be told."""

import socket

import pytest

from mpisign.ranks import links, transport, wires


def made(system, interfaces=(), ports=()):
    """Make what the kernel shows: (name, state, speed, kind of device) and (device, port, state, rate)."""
    for name, state, speed, kind in interfaces:
        folder = system / "net" / name
        folder.mkdir(parents=True)
        (folder / "operstate").write_text(state + "\n")
        if speed is not None:
            (folder / "speed").write_text(f"{speed}\n")
        if kind:
            (folder / kind).mkdir()
    for device, port, state, rate in ports:
        folder = system / "infiniband" / device / "ports" / port
        folder.mkdir(parents=True)
        (folder / "state").write_text(state + "\n")
        (folder / "rate").write_text(rate + "\n")
    return system


def test_links_that_are_up_have_a_speed_where_the_kernel_knows_it(tmp_path):
    system = made(
        tmp_path,
        [
            ("eth0", "up", 1000, "device"),
            ("eth1", "down", 100000, "device"),  # nothing is plugged in
            ("eth2", "up", -1, "device"),  # a virtual machine's
            ("eth3", "up", None, "device"),  # to read it is an error
            ("eth4", "up", 4294967295, "device"),
            ("eth5", "up", 65535, "device"),
            ("eth6", "up", 10000, ""),  # a container's: the kernel makes this up
            ("bond0", "up", 50000, "bonding"),
            ("ib0", "up", 100000, "device"),
            ("lo", "unknown", None, ""),
            ("docker0", "up", 10000, ""),
            ("veth1a2b", "up", 10000, ""),
            ("br-5e6f", "up", 10000, ""),
        ],
        [
            ("mlx5_0", "1", "4: ACTIVE", "200 Gb/sec (4X HDR)"),
            ("mlx5_1", "1", "1: DOWN", "40 Gb/sec (4X QDR)"),
            ("mlx5_2", "2", "4: ACTIVE", "2.5 Gb/sec (1X SDR)"),
        ],
    )
    assert links.links(system) == {
        "mlx5_0:1": 200.0, "ib0": 100.0, "bond0": 50.0, "mlx5_2:2": 2.5, "eth0": 1.0,
        "eth2": None, "eth3": None, "eth4": None, "eth5": None, "eth6": None,
    }  # fmt: skip
    assert list(links.links(system))[:5] == ["mlx5_0:1", "ib0", "bond0", "mlx5_2:2", "eth0"]
    assert links.fastest(links.links(system)) == ("mlx5_0:1", 200.0)
    assert links.fastest(links.links(system), sockets=True) == ("ib0", 100.0)


def test_a_system_without_these_folders_has_no_links(tmp_path):
    assert links.links(tmp_path) == {}
    assert links.fastest({}) is None
    assert links.fastest({"eth0": None}) is None


def test_the_links_that_carried_bytes(tmp_path):
    system = made(tmp_path, [("eth0", "up", 1000, "device")], [("mlx5_0", "1", "4: ACTIVE", "100 Gb/sec")])
    sent, words = system / "net/eth0/statistics", system / "infiniband/mlx5_0/ports/1/counters"
    for folder, name, count in ((sent, "tx_bytes", 7000), (words, "port_xmit_data", 100)):
        folder.mkdir()
        (folder / name).write_text(f"{count}\n")
    before = links.sent_bytes(["eth0", "mlx5_0:1", "gone", "gone:1"], system)
    assert before == {"eth0": 7000, "mlx5_0:1": 400}
    (words / "port_xmit_data").write_text("1100\n")
    (sent / "tx_bytes").write_text("7999\n")
    after = links.sent_bytes(before, system)
    assert links.carriers(before, after, 4000) == ["mlx5_0:1"]
    assert links.carriers(before, after, 3996) == ["eth0", "mlx5_0:1"]
    assert links.carriers(before, after, 40_000) == []


@pytest.mark.parametrize(("address", "interface"), [("127.0.0.1", "lo"), ("192.0.2.77", None)])
def test_gloo_takes_the_interface_of_the_hosts_name(monkeypatch, address, interface):
    monkeypatch.setattr(socket, "gethostbyname", lambda name: address)
    assert links.interface_of_host() == interface


def test_a_host_whose_name_is_unknown(monkeypatch):
    def fail(name):
        raise socket.gaierror

    monkeypatch.setattr(socket, "gethostbyname", fail)
    assert links.interface_of_host() is None


def test_settings_are_an_allow_list_without_addresses():
    environment = {
        "UCX_TLS": "rc,sm,self", "UCX_NET_DEVICES": "mlx5_0:1,mlx5_1:1", "FI_PROVIDER": "verbs;ofi_rxm",
        "OMPI_MCA_btl": "^openib", "NCCL_SOCKET_IFNAME": "=eth0.100", "OMPI_MCA_pml": "",
        "OMPI_MCA_btl_tcp_if_include": "10.1.2.0/24", "OMPI_MCA_btl_tcp_if_exclude": "lo,10.1.2.3",
        "FI_TCP_IFACE": "fe80::1", "PASSWORD": "secret", "UCX_LOG_FILE": "x", "HOSTNAME": "node7",
    }  # fmt: skip
    assert transport.settings(environment) == {
        "FI_PROVIDER": "verbs;ofi_rxm", "FI_TCP_IFACE": transport.HIDDEN, "UCX_TLS": "rc,sm,self",
        "UCX_NET_DEVICES": "mlx5_0:1,mlx5_1:1", "OMPI_MCA_btl": "^openib",
        "OMPI_MCA_btl_tcp_if_include": transport.HIDDEN, "OMPI_MCA_btl_tcp_if_exclude": transport.HIDDEN,
        "NCCL_SOCKET_IFNAME": "=eth0.100",
    }  # fmt: skip
    assert transport.shown("a\nWARNING: b") == transport.HIDDEN


@pytest.mark.parametrize(
    ("version", "netmod", "told"),
    [
        ("MPICH Version: 5.0.2\nMPICH Device:      ch4:ucx ofi\nMPICH CC: cc", "", "ch4:ucx"),
        ("MPICH Version: 5.0.2\nMPICH Device:      ch4:ucx,ofi\n", "ofi", "ch4:ofi"),
        ("MPICH Version: 5.0.2\nMPICH Device:      ch4:ucx ofi\n", "nonsense", "ch4:ucx"),
        ("MPICH Version: 4.1\nMPICH Device:\tch4:ofi\n", "", "ch4:ofi"),
        ("MPICH Version: 3.2\nMPICH Device:\tch3:nemesis\n", "", "ch3:nemesis"),
        ("MPICH Version: 3.2\nMPICH Device:\tch4\nMPICH configure: x", "", "ch4"),
        ("Intel(R) MPI Library 2021.13 for Linux* OS", "", "unknown"),
    ],
)
def test_mpich_tells_its_device(version, netmod, told):
    assert transport.mpich_transport(version, netmod) == told


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["pml", "pml_base_verbose", "pml_ucx_tls", "pml_wrapper", "btl", "btl_base_x", "btl_sm_x"], "pml ucx"),
        (["pml_ob1_x", "pml_base_x", "btl_tcp_if_include", "btl_self_x", "btl_vader_x"], "pml ob1, btl self tcp"),
        (["pml_cm_x", "mtl_ofi_x", "mtl_base_x", "btl_sm_x"], "pml cm, mtl ofi"),
        (["pml_ob1_x", "pml_ucx_x", "btl_sm_x"], "pml ob1 or ucx, btl sm"),
        (["coll_tuned_x"], "unknown"),
        ([], "unknown"),
    ],
)
def test_open_mpi_tells_its_components_by_what_it_has_kept(names, told):
    assert transport.open_mpi_transport(names) == told


def test_drivers_are_named_by_the_files_that_are_loaded():
    mapped = """7f00-7f01 r-xp 00000000 08:01 1    /opt/x/ucx/libuct_cma.so.0.0.0
7f01-7f02 r--p 00000000 08:01 1    /opt/x/ucx/libuct_ib_mlx5.so.0
7f01-7f02 r--p 00001000 08:01 1    /opt/x/ucx/libuct_ib_mlx5.so.0
7f02-7f03 r--p 00000000 08:01 1    /opt/x/libuct.so.0
7f03-7f04 r--p 00000000 08:01 1    /opt/x/libfabric/libverbs-fi.so
7f04-7f05 rw-p 00000000 00:00 0
"""
    assert transport.drivers(mapped) == ["cma", "ib_mlx5", "verbs"]
    assert isinstance(transport.drivers(), list)


@pytest.mark.parametrize(
    ("nodes", "other"),
    [([0], None), ([0, 0, 0], 2), ([0, 0, 1, 1], 2), ([0, 0, 1, 1, 2, 2], 4), ([0, 1, 2, 0, 1, 2], 2)],
)
def test_the_rank_that_is_farthest(nodes, other):
    assert wires.farthest(nodes) == other
