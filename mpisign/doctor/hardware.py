"""The checks of hardware, as the ranks see it: cores, memory, CUDA devices, the clock."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from ..ranks import place
from ..report import network
from .examination import SHARED, Facts
from .finding import ERROR, OK, WARNING, Finding, Ranks, each_fault, nodes, those

RESNET50_BYTES = 2_000_000_000  # that a rank which measures it has resident (the report's lines "memory")
SHARED_A_RANK = 64 * 2**20  # bytes of /dev/shm; as much as a container has for all of them if nobody asks for more
SLOW_CLOCK = 1e-6  # seconds


def check_cores(ranks: Ranks) -> list[Finding]:
    """See that no node has more ranks than cores, and that its ranks are bound alike, or not at all."""
    return [_cores(neighbours, len(ranks)) for neighbours in nodes(ranks)]


def _cores(neighbours: Ranks, total: int) -> Finding:
    masks = [facts.cores for facts in neighbours]
    cores, who = len(frozenset().union(*masks)), those([facts.rank for facts in neighbours], total)
    threads = [place.threads_for(mask, masks) for mask in masks]
    torch = f"torch {_range(threads)} thread(s) a rank"
    if len(masks) > cores:
        text = f"{len(masks)} ranks share {cores} core(s) and slow each other down"
        advice = f"start fewer ranks a node, or don't report these times as a cluster's{who}"
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
    findings = each_fault(WARNING, ranks, lambda facts: None if facts.shared else missing)
    for neighbours in nodes(ranks):
        who, wanted = those([facts.rank for facts in neighbours], len(ranks)), SHARED_A_RANK * len(neighbours)
        free = min((facts.shared[1] for facts in neighbours if facts.shared), default=wanted)
        if free < wanted:
            text = f"{SHARED} has {_mib(free)} free for {len(neighbours)} rank(s), {_mib(wanted)} are safe"
            findings.append(Finding(WARNING, f"{text}: clear it, or give a container more (--shm-size){who}"))
        stale = {name: size for facts in neighbours for name, size in facts.stale.items()}
        if stale:
            findings.append(_stale(stale, neighbours[0].slurm or {}, who))
    space = ranks[0].shared
    fine = f"{SHARED} has {_mib(space[1])} free of {_mib(space[0])}, and nothing stale" if space else ""
    return findings or [Finding(OK, fine)]


def _stale(stale: dict[str, int], slurm: dict[str, int], who: str) -> Finding:
    """Tell of segments that killed ranks left.

    MPICH names its own after Slurm's job and step: ranks of a job that was put back find those of their killed
    predecessors, and abort or hang in MPI_Init.
    """
    again = bool(slurm.get("restarts"))
    danger = "; this job was put back, and its ranks may abort or hang in MPI_Init for them" if again else ""
    names = " ".join(shlex.quote(str(SHARED / name)) for name in stale)  # all of them, to be pasted
    text = f"an ended job left {_mib(sum(stale.values()))} in {SHARED}, which no process here has open{danger}"
    return Finding(ERROR if again else WARNING, f"{text}: on that node, rm {names}{who}")


def _mib(count: float) -> str:
    return f"{count / 2**20:.0f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"


def check_memory(ranks: Ranks) -> list[Finding]:
    """See that ResNet-50 fits."""
    findings, shares, resnet50 = [], [], _mib(RESNET50_BYTES)
    for neighbours in nodes(ranks):
        left = min((facts.memory for facts in neighbours if facts.memory is not None), default=None)
        if left is None:
            text = f"the system does not say what is left: ResNet-50 takes up to {resnet50} a rank; see that it fits"
            return [Finding(WARNING, text)]
        shares.append(left / len(neighbours))
        if shares[-1] < RESNET50_BYTES:
            who = those([facts.rank for facts in neighbours], len(ranks))
            text = f"{_mib(left)} are left for {len(neighbours)} rank(s), and ResNet-50 takes up to {resnet50} each"
            advice = f"start at most {left // RESNET50_BYTES} a node, or take a smaller --model"
            findings.append(Finding(WARNING, f"{text}: {advice}{who}"))
    return findings or [Finding(OK, f"{_mib(min(shares))} are left for each rank")]


def check_network(ranks: Ranks) -> list[Finding]:
    """Tell what the network is, and see that a fast link between nodes does not lie idle."""
    facts = ranks[0].network
    if not facts:
        return []  # the ranks did not meet, which another check tells
    faults = [fault for fault in (network.slow(facts), network.slow_gloo(facts)) if fault]
    return [Finding(OK, network.told(facts)), *(Finding(WARNING, fault) for fault in faults)]


def check_cuda(ranks: Ranks) -> list[Finding]:
    """See that each rank has a CUDA device to itself, or that there is none."""
    seen = [facts.cuda for facts in ranks if facts.cuda]
    if len(seen) < len(ranks):
        return []  # no torch, which another check tells
    findings, devices = each_fault(WARNING, ranks, _driver_fault), len({cuda.uuid for cuda in seen} - {None})
    if not devices:
        return findings or [Finding(OK, "no device, so ranks compute on the CPU, and the baseline is Gloo")]
    none = "no device here, so all ranks would compute on CPUs: start ranks only where devices are"
    findings += each_fault(WARNING, ranks, lambda facts: None if facts.cuda and facts.cuda.uuid else none)
    if not findings and devices < len(ranks):
        text = f"{len(ranks)} ranks, but {devices} device(s), which the bench refuses"
        advice = (
            f"start one rank a device (mpirun -n {devices}; Slurm: --gpus-per-task=1), or try it out by --share-gpus"
        )
        findings.append(Finding(ERROR, f"{text}: {advice}"))
    return findings or [Finding(OK, f"{devices} device(s), one a rank")]


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
    faults = each_fault(WARNING, ranks, lambda facts: facts.cuda.nccl_fault if facts.cuda else None)
    if not faults and len({cuda.uuid for cuda in seen} - {None}) < len(ranks):
        faults = [Finding(WARNING, "does not run: it needs one CUDA device a rank; do as the line on CUDA says")]
    return faults or [Finding(OK, "runs, and is the baseline")]


def check_cuda_aware(ranks: Ranks) -> list[Finding]:
    """Tell what the library claims of device memory; the bench tries it, in a process of its own, and no check does."""
    claims = {True: "claims to take device memory", False: "takes no device memory", None: "can't be asked"}
    needless = "where there are devices the bench tries it first; without it, words pass through host memory"
    world = ranks[0].world
    return [Finding(OK, f"the library {claims[world.cuda_aware]}; {needless}")] if world and ranks[0].library else []


def check_clock(ranks: Ranks) -> list[Finding]:
    """See that the clock is fine and cheap to read."""
    findings = each_fault(WARNING, ranks, _clock_fault)
    worst = max((facts.clock for facts in ranks), key=lambda clock: clock.cost)
    return findings or [
        Finding(OK, f"resolution {_ns(worst.resolution)}, {_ns(worst.cost)} to read; from {worst.source}")
    ]


def _clock_fault(facts: Facts) -> str | None:
    if max(facts.clock.resolution, facts.clock.cost) <= SLOW_CLOCK:
        return None
    return (
        f"coarse or slow to read, more than {_ns(SLOW_CLOCK)}, from the kernel's source {facts.clock.source}: have the "
        "kernel take the processor's (clocksource=tsc), or trust no short times"
    )


def _ns(seconds: float) -> str:
    return f"{1e9 * seconds:.0f} ns"
