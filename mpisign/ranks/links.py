"""The network links of this node, as the kernel tells of them: their names and speeds, never an address."""

from __future__ import annotations

import contextlib
import fcntl
import re
import socket
import struct
from collections.abc import Iterable
from pathlib import Path

SYSTEM = Path("/sys/class")
LOOPBACK = "lo"
# Interfaces that join containers and virtual machines of one node, or lead nowhere.
_INSIDE = re.compile(r"(lo|docker|veth|br-|virbr|cni|flannel|cali|vxlan|tun|tap|ifb|dummy)")
_UNKNOWN = (65535, 2**31 - 1)  # Mbit/s: what kernels say, or more, that do not know the speed
_SIOCGIFADDR = 0x8915  # ioctl(2): the IPv4 address of an interface

Links = dict[str, float | None]  # name: Gbit/s, None where the kernel does not know it; the fastest first


def links(system: Path = SYSTEM) -> Links:
    """Return the links of this node that are up: interfaces, and ports of RDMA devices, which are named DEVICE:PORT."""
    found: Links = {}
    for folder in sorted((system / "net").glob("*")):
        if not _INSIDE.match(folder.name) and _read(folder / "operstate") == "up":
            found[folder.name] = _speed(folder)
    for folder in sorted((system / "infiniband").glob("*/ports/*")):
        if "ACTIVE" in _read(folder / "state"):
            rate = re.match(r"[\d.]+", _read(folder / "rate"))
            found[_port(folder)] = float(rate[0]) if rate else None
    return dict(sorted(found.items(), key=lambda link: -(link[1] or 0)))


def is_rdma(name: str) -> bool:
    """Tell a port of an RDMA device from an interface that sockets can use."""
    return ":" in name


def fastest(own: Links, *, sockets: bool = False) -> tuple[str, float] | None:
    """Return the link with the highest speed that is known, of those that sockets can use if asked so; None if none."""
    known = [(name, speed) for name, speed in own.items() if speed and not (sockets and is_rdma(name))]
    return max(known, key=lambda link: link[1], default=None)


def sent_bytes(names: Iterable[str], system: Path = SYSTEM) -> dict[str, int]:
    """Return how many bytes each of these links has sent since it came up, where the kernel counts them."""
    counts = {}
    for name in names:
        device, _, port = name.partition(":")
        with contextlib.suppress(OSError, ValueError):
            if port:  # counted in words of four bytes
                path = system / "infiniband" / device / "ports" / port / "counters/port_xmit_data"
                counts[name] = 4 * int(path.read_text())
            else:
                counts[name] = int((system / "net" / name / "statistics/tx_bytes").read_text())
    return counts


def carriers(before: dict[str, int], after: dict[str, int], sent: int) -> list[str]:
    """Return the links that have sent at least a quarter of the bytes in between: a node may spread them over some."""
    return [name for name in after if name in before and after[name] - before[name] >= sent / 4]


def interface_of_host() -> str | None:
    """Return the interface that has the address of this host's name, which Gloo takes; None if it can't be told."""
    with contextlib.suppress(OSError):
        wanted = socket.inet_aton(socket.gethostbyname(socket.gethostname()))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            for _, name in socket.if_nameindex():
                with contextlib.suppress(OSError):  # it has no address
                    asked = struct.pack("256s", name.encode())
                    if fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, asked)[20:24] == wanted:
                        return name
    return None


def _read(path: Path) -> str:
    """Return what a file says, "" if it can't be read: the kernel refuses what a link does not know."""
    with contextlib.suppress(OSError):
        return path.read_text().strip()
    return ""


def _speed(folder: Path) -> float | None:
    """Return the Gbit/s of an interface; None for one that is virtual, for its speed is made up, but for a bond."""
    said = _read(folder / "speed")
    real = (folder / "device").exists() or (folder / "bonding").exists()
    if not real or not said.isdigit() or int(said) in (0, _UNKNOWN[0]) or int(said) >= _UNKNOWN[1]:
        return None
    return int(said) / 1000


def _port(folder: Path) -> str:
    """Return the name of an RDMA device's port, as UCX_NET_DEVICES takes it."""
    return f"{folder.parent.parent.name}:{folder.name}"
