"""What the facts of all ranks mean: a table of checks, each a pure function from the ranks' facts to findings."""

from __future__ import annotations

from collections.abc import Callable

from . import hardware, software
from .finding import Finding, Ranks

CHECKS: dict[str, Callable[[Ranks], list[Finding]]] = {
    "packages": software.check_packages,
    "MPI library": software.check_library,
    "launcher": software.check_launcher,
    "thread level": software.check_threads,
    "cores": hardware.check_cores,
    "shared memory": hardware.check_shared_memory,
    "memory": hardware.check_memory,
    "network": hardware.check_network,
    "CUDA": hardware.check_cuda,
    "NCCL": hardware.check_nccl,
    "CUDA-aware MPI": hardware.check_cuda_aware,
    "clock": hardware.check_clock,
    "cache": software.check_cache,
    "results": software.check_results,
    "Slurm": software.check_slurm,
}


def diagnose(ranks: Ranks) -> list[tuple[str, Finding]]:
    """Return what each check of CHECKS finds, with its name; the facts come in the order of ranks."""
    return [(name, finding) for name, check in CHECKS.items() for finding in check(ranks)]
