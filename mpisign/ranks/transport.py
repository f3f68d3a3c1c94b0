"""By what means MPI sends, as far as its library tells, and the settings that steer it: an allow-list."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

UNKNOWN = "unknown"
# The environment variables that say over which network MPI or NCCL send; no other is looked at.
STEERING = (
    "MPIR_CVAR_CH4_NETMOD", "FI_PROVIDER", "FI_TCP_IFACE", "UCX_TLS", "UCX_NET_DEVICES", "I_MPI_FABRICS",
    "I_MPI_OFI_PROVIDER", "OMPI_MCA_pml", "OMPI_MCA_mtl", "OMPI_MCA_btl", "OMPI_MCA_btl_tcp_if_include",
    "OMPI_MCA_btl_tcp_if_exclude", "NCCL_SOCKET_IFNAME", "NCCL_IB_DISABLE", "NCCL_IB_HCA", "NCCL_NET",
)  # fmt: skip
HIDDEN = "(set, not shown)"
_PLAIN = re.compile(r"[\w.,;:=^+ -]{1,200}")  # names of links and drivers
_ADDRESS = re.compile(r"\d+(\.\d+){3}|[0-9a-f]*(:[0-9a-f]*){2,}", re.IGNORECASE)


def settings(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the settings that steer what network is used, those that are set."""
    return {name: shown(environment[name]) for name in STEERING if environment.get(name)}


def shown(value: str) -> str:
    """Return a setting's value, unless it may hold an address, or anything else than names."""
    plain = _PLAIN.fullmatch(value) and not any(_ADDRESS.fullmatch(part) for part in re.split("[,;= ]", value))
    return value if plain else HIDDEN


def transport() -> str:
    """Return by what means MPI sends, as far as its library tells."""
    from mpi4py import MPI

    if MPI.get_vendor()[0] == "Open MPI":
        return open_mpi_transport(_control_variables())
    return mpich_transport(MPI.Get_library_version(), os.environ.get("MPIR_CVAR_CH4_NETMOD", ""))


def mpich_transport(library_version: str, netmod: str = "") -> str:
    """Return MPICH's device, such as "ch4:ucx", from what the library says of its version.

    If it was built with several network modules it takes the first, unless another `netmod` is asked for.
    """
    told = re.search(r"^MPICH Device:\s*(\w+)(?::([\w, ]+))?", library_version, re.M)
    if not told:
        return UNKNOWN
    modules = re.split("[, ]+", (told[2] or "").strip())
    chosen = netmod if netmod in modules else modules[0]
    return f"{told[1]}:{chosen}" if chosen else told[1]


def open_mpi_transport(control_variables: Iterable[str]) -> str:
    """Return the components by which Open MPI sends: those that have kept their variables; it closes all others.

    Of the point-to-point layers (pml) it may keep more than one, and then does not tell which it uses.
    """
    found: dict[str, set[str]] = {"pml": set(), "mtl": set(), "btl": set()}
    for name in control_variables:
        parts = name.split("_")
        if len(parts) > 2 and parts[0] in found:
            found[parts[0]].add(parts[1])
    layers = sorted(found["pml"] - {"base", "wrapper", "monitoring", "v"})
    if not layers:
        return UNKNOWN
    told = f"pml {' or '.join(layers)}"
    if "cm" in layers:
        told += f", mtl {' '.join(sorted(found['mtl'] - {'base'}))}"
    if "ob1" in layers:  # "vader" is another name of "sm"
        told += f", btl {' '.join(sorted(found['btl'] - {'base', 'vader'}))}"
    return told


def _control_variables() -> list[str]:
    """Return the names of the control variables of the MPI library (MPI_T), which mpi4py does not know."""
    from mpi4py import MPI

    names, level, count = [], ctypes.c_int(), ctypes.c_int()
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(MPI.__file__)  # the library's names are not among the process's global ones
        # As MPI was started: Open MPI takes what is asked for here as the thread level of all.
        if library.MPI_T_init_thread(MPI.Query_thread(), ctypes.byref(level)):
            return []
        library.MPI_T_cvar_get_num(ctypes.byref(count))
        for index in range(count.value):
            name, length = ctypes.create_string_buffer(256), ctypes.c_int(256)
            if library.MPI_T_cvar_get_info(index, name, ctypes.byref(length), *[None] * 7) == 0:
                names.append(name.value.decode(errors="replace"))
        library.MPI_T_finalize()
    return names


def drivers(mapped: str | None = None) -> list[str]:
    """Return the drivers of UCX and libfabric that this process has loaded as files of their own, such as "ib"."""
    if mapped is None:
        mapped = ""
        with contextlib.suppress(OSError):
            mapped = Path("/proc/self/maps").read_text()
    names = {Path(line.split(maxsplit=5)[-1]).name for line in mapped.splitlines() if "/" in line}
    found = (re.match(r"libuct_(\w+)\.so|lib(\w+)-fi\.so", name) for name in names)
    return sorted({match[1] or match[2] for match in found if match})
