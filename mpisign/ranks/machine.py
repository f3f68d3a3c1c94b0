"""What a record tells of the machine, its software and its MPI: an allow-list, no host name, no environment."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import re
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from . import launch
from .torchrun import TorchComm

if TYPE_CHECKING:
    from .launch import Comm


def machine() -> dict[str, Any]:
    """Return what may be told of this machine and its software: an allow-list, no host name, no environment."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.machine()}",
        **software(),
        "commit": _commit(),
    }


def software() -> dict[str, str | None]:
    """Return the versions of what computes and sends."""
    versions = {name: version(name) for name in ("torch", "numpy", "numba", "mpi4py")}
    return {"python": platform.python_version(), **versions, "mpisign": __version__}


def started(program: str, config: object, own: Collection[str]) -> dict[str, Any]:
    """Return what all ranks must have in common; of the sources of the package it is a digest.

    `own` are the fields of `config` that are each rank's own, or rank 0's alone.
    """
    options = {f"--{name.replace('_', '-')}": value for name, value in vars(config).items() if name not in own}
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(source.read_bytes())
    return {"the program": program, **options, **software(), "the digest of mpisign's sources": digest.hexdigest()[:12]}


def version(package: str) -> str | None:
    """Return the version of an installed package; None if it is missing."""
    import importlib.metadata  # here: a report of a record shall not wait for it

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    with contextlib.suppress(OSError):
        model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        if model:
            return model[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Return the commit of the checkout that the package stands in, "-dirty" behind it if changed; None without one."""
    here = Path(__file__).parent
    try:
        tracked = ["git", "ls-files", "--error-unmatch", "__init__.py"]  # this, and not the user's own repository?
        subprocess.run(tracked, cwd=here, capture_output=True, timeout=10, check=True)
        asked = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=8", "--exclude=*"],
            cwd=here, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return asked.stdout.strip() or None


def cuda_aware() -> bool | None:
    """Return whether the MPI library claims to take device memory, None if it can't be asked. It is not tried."""
    from mpi4py import MPI

    try:
        # By way of mpi4py's own file: the library's names are not among the process's global ones.
        return bool(ctypes.CDLL(MPI.__file__).MPIX_Query_cuda_support())
    except (OSError, AttributeError):
        return None


def check_threads() -> None:
    """Raise a ValueError unless MPI may be called from a thread, while no other one does."""
    from mpi4py import MPI

    if MPI.Query_thread() < MPI.THREAD_SERIALIZED:
        raise ValueError("MPI: must be started with thread level serialized or multiple: gradients go through a thread")


def start_facts(comm: Comm) -> dict[str, Any]:
    """Return what a record tells of how the ranks were started, and of MPI."""
    facts = {"launcher": launch.launched()[0], "ranks": comm.size}
    if isinstance(comm, TorchComm):
        return facts | dict.fromkeys(("mpi", "mpi_standard", "thread_level"), "none")
    from mpi4py import MPI

    vendor, version = MPI.get_vendor()
    return facts | {
        "mpi": f"{vendor} {'.'.join(map(str, version))}",
        "mpi_standard": ".".join(map(str, MPI.Get_version())),
        "thread_level": thread_level(),
    }


def thread_level() -> str:
    """Return the name of MPI's thread level."""
    from mpi4py import MPI

    levels = {MPI.THREAD_SINGLE: "single", MPI.THREAD_FUNNELED: "funneled",
              MPI.THREAD_SERIALIZED: "serialized", MPI.THREAD_MULTIPLE: "multiple"}  # fmt: skip
    return levels[MPI.Query_thread()]
