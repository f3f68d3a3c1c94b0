"""The facts that a rank can tell of itself and its node without another rank's help.

What is missing or broken is a fact too: nothing here raises because of it, or imports torch at the top.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import re
import shutil
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ranks import launch, machine, torchrun, wires
from ..ranks.nodes import nodes_of
from ..ranks.torchrun import TorchComm
from ..report import records

if TYPE_CHECKING:
    from mpi4py import MPI

# What pyproject.toml asks for. The doctor knows it where mpisign is not installed, too.
OLDEST = {
    "filelock": (3, 13),
    "mpi4py": (4, 0),
    "msgspec": (0, 19),
    "numba": (0, 60),
    "numpy": (1, 26),
    "tabulate": (0, 9),
    "torch": (2, 4),
    "torchvision": (0, 19),
    "tqdm": (4, 60),
}
SHARED = Path("/dev/shm")  # noqa: S108 - it is what is examined
# What MPICH, Open MPI and NCCL call their segments there.
SEGMENTS = ("mpich_shm_*", "mpich_vci_*", "vader_segment.*", "sm_segment.*", "nccl-*")
SLURM = {
    "tasks": "SLURM_NTASKS",
    "nodes": "SLURM_JOB_NUM_NODES",
    "cores": "SLURM_CPUS_PER_TASK",
    "restarts": "SLURM_RESTART_COUNT",
}


@dataclass(frozen=True)
class Clock:
    """The clock that all times are taken with; seconds."""

    resolution: float
    cost: float  # of reading it
    source: str  # the kernel's, "unknown" where it does not say


@dataclass(frozen=True)
class Library:
    """The MPI library that mpi4py loaded: known before MPI starts."""

    vendor: str
    version: str
    standard: str
    built_for: str  # the standard that mpi4py was built for
    loaded: tuple[str, ...]  # files of this process that are an MPI library


@dataclass(frozen=True)
class World:
    """What this rank is among all, and how MPI started, if it did."""

    rank: int
    size: int
    node: int  # nodes are numbered by their first rank
    local: int  # the rank among those of its node
    thread_level: str = "none"
    thread_fault: str | None = None
    singly: str | None = None  # what is wrong if the launcher meant to start more ranks
    cuda_aware: bool | None = None  # what the library claims; None if it can't be asked


@dataclass(frozen=True)
class Cuda:
    """What torch sees of CUDA from this rank."""

    built: str | None  # the CUDA that torch was built for
    devices: int
    uuid: str | None  # of the device that would be this rank's
    nccl_fault: str | None  # why NCCL can't run here


@dataclass(frozen=True)
class Facts:
    """One rank's facts; sizes are bytes. Those with a default are found last, after MPI has started."""

    python: str
    versions: dict[str, str | None]
    launcher: str
    rank: int  # what the launcher said, until MPI has started
    mpirun: str | None  # whose the PATH's mpirun is: MPICH, Open MPI or unknown; None if there is none
    cores: frozenset[int]
    node_cores: int
    shared: tuple[int, int] | None  # size and free space of /dev/shm
    stale: dict[str, int]  # segments of this user there that no process has open, and their sizes
    memory: int | None  # that this node has left for us
    clock: Clock
    unwritable: str | None  # why no record could be kept
    nvidia: bool  # whether the system has an NVIDIA device
    slurm: dict[str, int] | None
    library: Library | None = None
    library_fault: str | None = None
    world: World | None = None
    broken: dict[str, str] = field(default_factory=dict)  # packages that are there and can't be imported: why
    cached: bool | None = None  # whether compiled code can be kept; None without Numba
    cuda: Cuda | None = None
    network: dict[str, Any] | None = None  # between the ranks, as a record of the bench tells it

    @property
    def without_mpi(self) -> bool:
        """Whether the ranks were started to go without MPI."""
        return self.launcher in torchrun.LAUNCHERS


def before_mpi() -> Facts:
    """Return what can be found out before MPI starts: it may hang, and it makes shared memory of its own."""
    launcher, _, rank = launch.launched()
    return Facts(
        python=platform.python_version(),
        versions={name: machine.version(name) for name in OLDEST},
        launcher=launcher,
        rank=rank,
        mpirun=path_mpirun() if launcher == "python" else None,
        cores=frozenset(os.sched_getaffinity(0)),
        node_cores=os.cpu_count() or 1,
        shared=shared_space(),
        stale=stale_segments(),
        memory=memory_left(),
        clock=clock(),
        unwritable=records.unwritable(Path("results", "record.jsonl")),
        nvidia=Path("/dev/nvidiactl").exists(),
        slurm=slurm(),
    )


def with_library(facts: Facts) -> Facts:
    """Return the facts with those of the MPI library, which is loaded, but not started."""
    try:
        import mpi4py

        mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        return replace(facts, library_fault=str(error).splitlines()[0])
    vendor, version = MPI.get_vendor()
    library = Library(
        vendor=vendor,
        version=f"{vendor} {'.'.join(map(str, version))}",
        standard=".".join(map(str, MPI.Get_version())),
        built_for=f"{MPI.VERSION}.{MPI.SUBVERSION}",
        loaded=loaded_libraries(),
    )
    return replace(facts, library=library)


def with_world(facts: Facts, meet: Callable[[launch.Comm], None]) -> tuple[Facts, MPI.Comm]:
    """Start MPI as importing it would have; return the facts with what this rank is, and COMM_WORLD. Collective.

    `meet` is called with COMM_WORLD before anything else is asked of the others.
    """
    import mpi4py
    from mpi4py import MPI

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of another MPI's launcher: a check tells that
        MPI.Init_thread(getattr(MPI, f"THREAD_{mpi4py.rc.thread_level.upper()}"))
    comm = MPI.COMM_WORLD
    meet(comm)
    nodes, fault = nodes_of(comm), None
    try:
        machine.check_threads()
    except ValueError as error:
        fault = str(error)
    world = World(
        rank=comm.rank,
        size=comm.size,
        node=nodes[comm.rank],
        local=nodes[: comm.rank].count(nodes[comm.rank]),
        thread_level=machine.thread_level(),
        thread_fault=fault,
        singly=launch.started_singly(comm.size),
        cuda_aware=machine.cuda_aware(),
    )
    return replace(facts, world=world, rank=facts.rank if world.singly else comm.rank), comm


def with_torch(facts: Facts, meet: Callable[[launch.Comm], None]) -> tuple[Facts, TorchComm | None]:
    """Find the other ranks without MPI; return the facts with what this rank is, and all ranks. Collective.

    `meet` is called with all ranks first. Where torch can't be imported, there are no others: a check tells that.
    """
    if import_fault("torch"):
        return facts, None
    comm = TorchComm()
    meet(comm)
    nodes = nodes_of(comm)
    world = World(comm.rank, comm.size, nodes[comm.rank], nodes[: comm.rank].count(nodes[comm.rank]))
    return replace(facts, world=world, rank=comm.rank), comm


def after_mpi(facts: Facts) -> Facts:
    """Return the facts with those for which packages must be imported, which may take seconds."""
    broken = {name: why for name in OLDEST if facts.versions[name] and (why := import_fault(name))}
    usable = {name for name in OLDEST if facts.versions[name]} - set(broken)
    cached, cuda = None, None
    if usable >= {"numba", "filelock"}:
        from ..coding.kernels import jit

        cached = jit.cache_folder() is not None
    if "torch" in usable:
        cuda = torch_cuda(facts.world.local if facts.world else 0)
    return replace(facts, broken=broken, cached=cached, cuda=cuda)


def with_network(facts: Facts, comm: launch.Comm) -> Facts:
    """Return the facts with those of the network between the ranks, a ping-pong among them. Collective."""
    return replace(facts, network=wires.network(comm, nodes_of(comm)))


def import_fault(name: str) -> str | None:
    """Say why a package that is installed can't be imported, or None."""
    try:
        importlib.import_module(name)
    except Exception as error:  # whatever it does when it is broken
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def path_mpirun() -> str | None:
    """Return whose the mpirun on the PATH is: MPICH (or its kin), Open MPI or unknown; None if there is none."""
    if not shutil.which("mpirun"):
        return None
    try:
        said = subprocess.run(["mpirun", "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    if "Open MPI" in said or "OpenRTE" in said:
        return "Open MPI"
    return "MPICH" if re.search("hydra|intel|mpich", said, re.IGNORECASE) else "unknown"


def shared_space(folder: Path = SHARED) -> tuple[int, int] | None:
    """Return size and free space of the file system for shared memory; None where this user has none."""
    if not os.access(folder, os.W_OK):
        return None
    space = shutil.disk_usage(folder)
    return space.total, space.free


def stale_segments(folder: Path = SHARED) -> dict[str, int]:
    """Return MPI's segments of this user that no process has open, with their sizes.

    First the segments, then the processes: what a rank makes in between is not in the list.
    """
    sizes = {}
    for path in (path for pattern in SEGMENTS for path in folder.glob(pattern)):
        with contextlib.suppress(OSError):  # gone meanwhile
            status = path.stat()
            if status.st_uid == os.getuid():
                sizes[str(path)] = status.st_size
    if not sizes:
        return {}
    in_use = set(_open_files())
    return {Path(path).name: size for path, size in sorted(sizes.items()) if path not in in_use and Path(path).exists()}


def _open_files() -> Iterator[str]:
    """Return what this user's processes have mapped or open."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for line in (process / "maps").read_text().splitlines():
                yield line.split(maxsplit=5)[5] if line.count("/") else ""
        with contextlib.suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    yield os.readlink(descriptor)


def memory_left(system: Path = Path("/")) -> int | None:
    """Return the bytes that this node has left, no more than the control group allows; None if it does not say."""
    left = []
    with contextlib.suppress(OSError):
        available = re.search(r"^MemAvailable:\s*(\d+) kB", (system / "proc/meminfo").read_text(), re.M)
        left += [1024 * int(available[1])] if available else []
    for group, limit, used in _control_groups(system):
        with contextlib.suppress(OSError, ValueError):  # no limit is "max"
            free = int((group / limit).read_text()) - int((group / used).read_text())
            cached = re.findall(r"^(?:total_)?inactive_file (\d+)", (group / "memory.stat").read_text(), re.M)
            left.append(free + max(map(int, cached), default=0))  # the cache of files makes room
    return max(0, min(left)) if left else None


def _control_groups(system: Path) -> Iterator[tuple[Path, str, str]]:
    """Return this process's control groups and those above, of versions 2 and 1: folder, files of limit and use."""
    with contextlib.suppress(OSError):
        for line in (system / "proc/self/cgroup").read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers in ("", "memory"):
                root = system / "sys/fs/cgroup" / controllers
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else (
                    "memory.max", "memory.current")  # fmt: skip
                parts = Path(name.strip("/")).parts
                for depth in range(len(parts) + 1):
                    yield root.joinpath(*parts[:depth]), *names


def clock() -> Clock:
    """Return what the clock can tell apart and what reading it costs: the best of five rounds."""
    rounds, calls = [], 2000
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(calls):
            time.perf_counter()
        rounds.append((time.perf_counter() - began) / calls)
    source = "unknown"
    with contextlib.suppress(OSError):
        source = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource").read_text().strip()
    return Clock(time.get_clock_info("perf_counter").resolution, min(rounds), source)


def slurm() -> dict[str, int] | None:
    """Return what Slurm says of the job, as far as it says it; None outside of one."""
    if "SLURM_JOB_ID" not in os.environ:
        return None
    return {name: int(said) for name, key in SLURM.items() if (said := os.environ.get(key, "")).isdigit()}


def loaded_libraries() -> tuple[str, ...]:
    """Return the files that this process has loaded and that are an MPI library."""
    with contextlib.suppress(OSError):
        mapped = {line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
        return tuple(sorted(path for path in mapped if re.fullmatch(r"libmpi(ch)?\.so[.\d]*", Path(path).name)))
    return ()


def torch_cuda(local: int) -> Cuda:
    """Return what torch sees of CUDA; `local` is the rank among those of its node, as place.find counts them."""
    import torch

    from ..ranks.group import nccl_fault

    devices, uuid = torch.cuda.device_count() if torch.cuda.is_available() else 0, None
    if devices:
        uuid = str(torch.cuda.get_device_properties(local % devices).uuid)
    return Cuda(torch.version.cuda, devices, uuid, nccl_fault())
