"""Does one-bit majority-vote gradient exchange pay here? Every method exchanges the same gradients; one table answers.

mpirun -n 16 python -m mpisign.bench --model resnet50
"""

from __future__ import annotations

import dataclasses
import math
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..coding.ties import TIES
from ..methods.catalogue import METHODS, needs_nccl
from ..methods.rivals import BASELINES, LOSSY, REFERENCES
from ..ranks import agreement, launch, options
from ..ranks.options import fraction, names, natural, not_negative, option, positive
from ..report import formats, records
from ..voting.adversary import ADVERSARIES, traitors
from ..voting.exchange import EXCHANGES
from ..voting.schedule import SCHEDULES

if TYPE_CHECKING:
    from mpi4py import MPI

    from ..ranks.place import Place
    from ..workload.data import Batch
    from .contest import Contest

PROGRAM = "mpisign.bench"


@dataclass(frozen=True)
class Config:
    """What is asked of a run."""

    model: str = option("resnet50", "torchvision's name of a classifier, or tiny", metavar="NAME")
    batch_size: int = option(None, "pictures a rank (default: 1 on CPUs, 32 on CUDA)", type=positive, metavar="N")
    image_size: int = option(224, "height and width of the pictures", type=positive, metavar="N")
    data: str = option("", "a folder of class folders with pictures (default: synthetic ones)", metavar="PATH")
    methods: tuple[str, ...] = option(
        (),
        f"which, with commas between (default: all that can run): {', '.join(METHODS)}",
        type=names(METHODS),
        metavar="NAME,...",
    )
    schedule: str = option(
        "serial",
        "serial: backward, then the exchange, so that all methods share one gradient; overlap: each exchanges during "
        "a backward of its own, as in training",
        choices=SCHEDULES,
    )
    iterations: int = option(10, "measured iterations, or the least number with --until", type=positive, metavar="N")
    until: float | None = option(
        None,
        "go on until the interval of every speed-up is as narrow as this share of it to each side, such as 0.02",
        type=fraction,
        metavar="SHARE",
    )
    time_cap: float = option(600.0, "with --until: but no longer (a sweep: all sizes)", type=not_negative, metavar="S")
    warmup: int = option(2, "iterations before them", type=natural, metavar="N")
    tie: str = option("positive", "who wins where the votes are even: +1, a seeded coin, or nobody", choices=TIES)
    momentum: float = option(0.9, "each worker's momentum, before the sign", type=fraction, metavar="BETA")
    bucket_mb: float = option(25.0, "DistributedDataParallel's bucket size", metavar="MB")
    adversaries: int = option(0, "how many ranks are traitors", type=natural, metavar="N")
    adversary: str = option("invert", "what a traitor sends", choices=tuple(ADVERSARIES))
    share_gpus: bool = option(False, "let ranks share CUDA devices, to try it out: the times are not a cluster's")
    seed: int = option(0, "of weights, pictures, coins, traitors and the order of methods", type=natural, metavar="N")
    output: str = option("", "the record's file (default: a new one in results/<machine>/)", metavar="FILE")
    format: str = option("table", "of what is printed", choices=formats.FORMATS)
    per_iteration: bool = option(False, "print each iteration too")
    trace: bool = option(False, "keep when each span began, for mpisign.report --trace")
    sizes: tuple[int, ...] = option(
        (),
        "no model: sweep vectors of these sizes (bytes of fp32), such as 1K:256M, or 1K:256M:2 to double",
        type=options.sizes,
        metavar="LOW:HIGH[:FACTOR]",
    )


@dataclass(frozen=True)
class Setting:
    """Where a run takes place: settled once, on each rank, before anything is exchanged."""

    config: Config
    place: Place
    methods: tuple[str, ...]
    skipped: dict[str, str]
    adversary: str | None
    path: Path
    batches: Iterator[Batch] | None  # None in a sweep


def settle(config: Config, comm: MPI.Comm) -> Setting:
    """Look at the machine, collectively, then check the arguments: a fault may raise on one rank alone.

    Raises:
        ValueError: an argument can't be met; it is named.

    """
    from ..ranks import place
    from ..workload import models

    here = place.find(comm, config.share_gpus)
    config = dataclasses.replace(config, batch_size=config.batch_size or (32 if here.device.type == "cuda" else 1))
    skipped = {name: here.without_nccl for name in METHODS if here.without_nccl and needs_nccl(name)}
    if config.sizes:
        thin = "it compresses matrices, and a sweep has none"
        skipped |= {name: thin for name in METHODS if name.startswith("powersgd")}
    for method in config.methods:
        if method in skipped:
            raise ValueError(f"methods: {method} cannot run: {skipped[method]}")
    if not config.methods and here.device.type == "cpu":
        skipped = {name: rival.unasked for name, rival in BASELINES.items() if rival.unasked} | skipped
    methods = config.methods or tuple(name for name in METHODS if name not in skipped)
    guilty = traitors(config.adversaries, comm.size, config.seed)
    if not 0 < config.bucket_mb < math.inf:
        raise ValueError(f"bucket_mb: must be above 0, got {config.bucket_mb}")
    if config.sizes and config.schedule == "overlap":
        raise ValueError("schedule: a sweep over sizes has no backward to overlap with")
    batches = None
    if not config.sizes:
        models.check(config.model, config.image_size, config.batch_size)
        batches = _batches(config, own_seed=config.seed * comm.size + comm.rank)
    path = Path(config.output) if config.output else _default_path(config, here.machine)
    fault = records.unwritable(path) if comm.rank == 0 else None
    if fault:
        raise ValueError(f"output: {fault}")
    adversary = config.adversary if comm.rank in guilty else None
    return Setting(config, here, methods, skipped, adversary, path, batches)


def _batches(config: Config, own_seed: int) -> Iterator[Batch]:
    from ..workload import data

    if config.data:
        return data.folder(Path(config.data), config.batch_size, config.image_size, own_seed)
    return data.synthetic(config.batch_size, config.image_size, own_seed)


def _default_path(config: Config, machine: dict[str, Any]) -> Path:
    date = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    overlap = "overlap" if config.schedule == "overlap" else ""
    what = "sweep" if config.sizes else "-".join(filter(None, (config.model, Path(config.data).name, overlap)))
    name = f"{what}-{machine['ranks']}-ranks"
    return Path("results", records.folder_name(machine), f"{date}-{machine['commit'] or 'no-commit'}-{name}.jsonl")


def new_run(setting: Setting) -> records.Run:
    """Return a record with its first line filled in, but for what only the gradient tells."""
    config = dataclasses.asdict(setting.config)
    del config["output"], config["format"], config["per_iteration"]  # they say nothing about the times
    config["data"] = Path(config["data"]).name
    baseline = next((name for name in REFERENCES if name in setting.methods), None)
    return records.Run({
        "type": "run", "format": records.FORMAT, "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "config": config, "machine": setting.place.machine, "methods": list(setting.methods),
        "kinds": {name: _kind(name) for name in setting.methods},
        "lossy": [name for name in setting.methods if name in BASELINES and BASELINES[name].roundoff == LOSSY],
        "skipped": setting.skipped, "baseline": baseline, "traffic": {},
    })  # fmt: skip


def _kind(method: str) -> str:
    if method not in BASELINES:
        return "vote"
    return "ceiling" if BASELINES[method].roundoff is None else "rival"


@contextmanager
def _ready(comm: MPI.Comm, setting: Setting) -> Iterator[Contest]:
    """Start torch.distributed and the methods."""
    from ..ranks.group import process_group
    from .contest import Contest

    config = setting.config
    with process_group(comm, setting.place.backend, setting.place.one_node):
        compile_kernels()
        contest = Contest(
            comm, setting.methods, momentum=config.momentum, tie=config.tie, seed=config.seed,
            adversary=setting.adversary, takes_device_memory=setting.place.takes_device_memory,
            traced=config.trace,
        )  # fmt: skip
        yield contest
        contest.close()


def compile_kernels() -> None:
    """Have all kernels compiled before the clock starts."""
    import torch
    from mpi4py import MPI

    from ..coding.counting import planes_for
    from ..voting.bucket import HeldBucket
    from ..voting.hook import VoteState
    from ..voting.native import merge_function

    vector = torch.zeros(65)
    for exchange in EXCHANGES:
        for momentum in (0.0, 0.9):
            state = VoteState(MPI.COMM_SELF, momentum, exchange, "random")
            state.vote_bucket(HeldBucket(0, vector, [vector], True))
            state.close()
    merge_function(planes_for(MPI.COMM_WORLD.size))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, or 1 if any result was wrong. Faulty input exits with 2."""
    config = options.parse(Config, PROGRAM, __doc__.splitlines()[0], arguments)
    with launch.session(PROGRAM) as comm:
        with agreement.refusing(comm, PROGRAM):
            setting = settle(config, comm)
        device = setting.place.device
        if comm.rank == 0 and config.format == "table":
            print(f"{PROGRAM}: {comm.size} ranks on {device.type}, batch {setting.config.batch_size} a rank, "
                  f"methods {', '.join(setting.methods)}", file=sys.stderr, flush=True)  # fmt: skip
        from ..ranks import place
        from . import measure

        began, run = time.monotonic(), new_run(setting)
        with place.telling_of_memory(), _ready(comm, setting) as contest:
            recorder = measure.Recorder(comm, run, setting.place.nodes, config.trace)
            recorder.wrong = contest.probe(device)
            trial = None
            if setting.batches is None:
                measure.measure_sizes(run, comm, contest, recorder, device)
            else:
                trial = measure.Trial(run.head["config"], device, setting.batches, contest)
                measure.measure_model(run, comm, contest, recorder, trial)
            run.end["measuring"] = measure.cost(comm, contest, trial)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
        run.end |= {"type": "end", "wrong": recorder.wrong, "wall_s": time.monotonic() - began,
                    "peak_bytes": comm.allgather(peak)}  # fmt: skip
        if config.trace:
            run.end["clock_error_s"] = recorder.clock_error
        code = finish(run, setting, config) if comm.rank == 0 else 0
        return int(comm.bcast(code))


def finish(run: records.Run, setting: Setting, config: Config) -> int:
    """Keep the record, print the table, and say what was wrong; return the exit code."""
    from ..report import table
    from ..report.summary import summarize

    faults = []
    try:
        records.write(setting.path, run.lines())
    except OSError as error:
        faults.append(f"the record could not be written: {error}")
    print(table.render(summarize(run), config.format, per_iteration=config.per_iteration), flush=True)
    if not faults:
        print(f"{PROGRAM}: record kept in {setting.path}", file=sys.stderr)
    if run.end["wrong"]:
        faults.append(f"{run.end['wrong']} wrong coordinates")
    if run.end.get("replicas_identical") is False:
        faults.append("the replicas differ between ranks")
    for fault in faults:
        print(f"{PROGRAM}: error: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
