"""Does one-bit majority-vote gradient exchange pay here? Every method exchanges the same gradients; one table answers.

mpirun -n 16 python -m mpisign.bench --model resnet50
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import os
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import mpi, options, records, table
from .adversary import ADVERSARIES, traitors
from .baselines import BASELINES, REFERENCES
from .exchange import EXCHANGES
from .options import fraction, names, natural, option, positive
from .votes import TIES

if TYPE_CHECKING:
    import torch
    from mpi4py import MPI

    from .contest import Contest, HeldBucket
    from .data import Batch

PROGRAM = "mpisign.bench"
METHODS = (*BASELINES, *("vote-" + name for name in EXCHANGES))


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
    iterations: int = option(10, "measured iterations", type=positive, metavar="N")
    warmup: int = option(2, "iterations before them", type=natural, metavar="N")
    tie: str = option("positive", "who wins where the votes are even: +1, a seeded coin, or nobody", choices=TIES)
    momentum: float = option(0.9, "each worker's momentum, before the sign", type=fraction, metavar="BETA")
    bucket_mb: float = option(25.0, "DistributedDataParallel's bucket size", metavar="MB")
    adversaries: int = option(0, "how many ranks are traitors", type=natural, metavar="N")
    adversary: str = option("invert", "what a traitor sends", choices=tuple(ADVERSARIES))
    seed: int = option(0, "of weights, pictures, coins, traitors and the order of methods", type=natural, metavar="N")
    output: str = option("", "the record's file (default: a new one in results/<machine>/)", metavar="FILE")
    format: str = option("table", "of what is printed", choices=table.FORMATS)
    per_iteration: bool = option(False, "print each iteration too")
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
    device: torch.device
    methods: tuple[str, ...]
    skipped: dict[str, str]
    adversary: str | None
    nodes: list[int]
    path: Path
    machine: dict[str, Any]
    batches: Iterator[Batch] | None  # None in a sweep


def settle(config: Config, comm: MPI.Comm) -> Setting:
    """Look at the machine, collectively, then check the arguments: a fault may raise on one rank alone.

    Raises:
        ValueError: an argument can't be met; it is named.

    """
    nodes = mpi.nodes_of(comm)
    import torch

    from . import models
    from .baselines import nccl_fault

    # What one rank can't, none does: all must run the same methods on the same kind of device.
    mine, before = nodes[comm.rank], nodes[: comm.rank].count(nodes[comm.rank])
    own = torch.device("cuda", before % torch.cuda.device_count()) if torch.cuda.is_available() else None
    # A rank may see all devices of its node, or only the one that the scheduler gave it.
    uuids = comm.allgather(None if own is None else str(torch.cuda.get_device_properties(own).uuid))
    cuda = None not in uuids and len(set(uuids)) == comm.size
    without_nccl = next(filter(None, comm.allgather(nccl_fault(cuda))), None)
    device = own if cuda and own else torch.device("cpu")
    affinity = os.sched_getaffinity(0)
    neighbours = [other for node, other in zip(nodes, comm.allgather(affinity), strict=True) if node == mine]
    if cuda:
        torch.cuda.set_device(device)
    machine = comm.bcast(records.machine() if comm.rank == 0 else None) | mpi.facts(comm)
    machine |= {"nodes": len(set(nodes)), "cores": len(set().union(*neighbours))}
    machine["device"] = torch.cuda.get_device_name(device) if cuda else machine["cpu"]
    machine["ranks_per_core"] = len(neighbours) / machine["cores"]
    machine["torch_threads"] = max(1, len(affinity) // sum(bool(affinity & other) for other in neighbours))
    torch.set_num_threads(machine["torch_threads"])
    config = dataclasses.replace(config, batch_size=config.batch_size or (32 if cuda else 1))

    skipped = {name: without_nccl for name, rival in BASELINES.items() if without_nccl and rival.needs_nccl}
    for method in config.methods:
        if method in skipped:
            raise ValueError(f"methods: {method} cannot run: {skipped[method]}")
    methods = config.methods or tuple(name for name in METHODS if name not in skipped)
    guilty = traitors(config.adversaries, comm.size, config.seed)
    if not 0 < config.bucket_mb < math.inf:
        raise ValueError(f"bucket_mb: must be above 0, got {config.bucket_mb}")
    batches = None
    if not config.sizes:
        models.check(config.model, config.image_size, config.batch_size)
        batches = _batches(config, own_seed=config.seed * comm.size + comm.rank)
    path = Path(config.output) if config.output else _default_path(config, machine)
    fault = records.unwritable(path) if comm.rank == 0 else None
    if fault:
        raise ValueError(f"output: {fault}")
    adversary = config.adversary if comm.rank in guilty else None
    return Setting(config, device, methods, skipped, adversary, nodes, path, machine, batches)


def _batches(config: Config, own_seed: int) -> Iterator[Batch]:
    from . import data

    if config.data:
        return data.folder(Path(config.data), config.batch_size, config.image_size, own_seed)
    return data.synthetic(config.batch_size, config.image_size, own_seed)


def _default_path(config: Config, machine: dict[str, Any]) -> Path:
    date = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    what = "sweep" if config.sizes else "-".join(filter(None, (config.model, Path(config.data).name)))
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
        "config": config, "machine": setting.machine, "methods": list(setting.methods), "skipped": setting.skipped,
        "baseline": baseline, "traffic": {},
    })  # fmt: skip


class Recorder:
    """Gathers each rank's samples on rank 0. Collective."""

    def __init__(self, comm: MPI.Comm, setting: Setting) -> None:
        self.comm, self.setting, self.run = comm, setting, new_run(setting)
        self.wrong = 0

    def exchange(self, iteration: int, samples: list[dict[str, Any]], size: int | None = None) -> None:
        """Keep a round's samples; those of the warm-up (iterations below 0) only count what is wrong."""
        self.wrong += sum(sample["wrong"] for sample in samples)
        if iteration >= 0:
            extra = {} if size is None else {"bytes": size}
            self._gather(
                self.run.exchange,
                "exchange",
                [sample | extra | {"iteration": iteration} for sample in samples],
            )

    def compute(self, iteration: int, spans: dict[str, float]) -> None:
        """Keep the spans of an iteration's own work."""
        if iteration >= 0:
            self._gather(self.run.compute, "compute", [spans | {"iteration": iteration}])

    def _gather(self, into: list[dict[str, Any]], kind: str, lines: list[dict[str, Any]]) -> None:
        for rank, part in enumerate(self.comm.gather(lines) or []):
            into += [{"type": kind, "rank": rank} | line for line in part]

    def traffic(self, of: int | None, buckets: list[int]) -> None:
        """Keep what each method sends and receives for buckets of so many coordinates."""
        from .contest import traffic

        tie, nodes = self.setting.config.tie, self.setting.nodes
        self.run.head["traffic"][str(of or "model")] = {
            method: sum(traffic(method, n, tie, nodes) for n in buckets).T.tolist()  # type: ignore[union-attr]
            for method in self.setting.methods
        }


def measure_model(comm: MPI.Comm, setting: Setting, contest: Contest, recorder: Recorder) -> None:
    """Train the model for the iterations asked for; each gradient goes through every method."""
    import torch
    from torch.nn.functional import cross_entropy
    from torch.nn.parallel import DistributedDataParallel

    from . import check, models
    from .contest import collect, synchronize
    from .spans import Spans

    config, device, batches = setting.config, setting.device, setting.batches or iter(())
    torch.manual_seed(config.seed)
    model = models.build(config.model, config.image_size).to(device)
    recorder.run.head["coordinates"] = sum(parameter.numel() for parameter in model.parameters())
    # BatchNorm's statistics stay each rank's own: no method shall pay for broadcasting them. The option has two names.
    known = inspect.signature(DistributedDataParallel).parameters
    own_buffers: dict[str, Any] = {
        next(name for name in ("forward_sync_buffers", "broadcast_buffers") if name in known): False
    }
    replica = DistributedDataParallel(
        model, bucket_cap_mb=config.bucket_mb, gradient_as_bucket_view=True, **own_buffers
    )
    held: list[HeldBucket] = []
    replica.register_comm_hook(held, collect)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, weight_decay=1e-4)  # the paper's
    spans, anchor = Spans(), next(model.parameters())

    for iteration in _iterations(comm, config):
        held.clear()
        optimizer.zero_grad()
        with spans("data"):
            pictures, labels = (part.to(device) for part in next(batches))
            synchronize(anchor)
        with spans("forward"):
            loss = cross_entropy(replica(pictures), labels)
            synchronize(anchor)
        with spans("backward"):
            loss.backward()  # type: ignore[no-untyped-call]
            synchronize(anchor)
        samples = list(contest.round(iteration + config.warmup, held))
        contest.apply(iteration + config.warmup, held)
        with spans("step"):
            optimizer.step()
            synchronize(anchor)
        recorder.exchange(iteration, samples)
        recorder.compute(iteration, spans.take())
    recorder.traffic(None, [bucket.tensor.numel() for bucket in held])
    if setting.methods != ("none",):
        weights = (parameter.detach().cpu().numpy() for parameter in model.parameters())
        recorder.run.end["replicas_identical"] = check.same_everywhere(comm, weights)


def measure_sizes(comm: MPI.Comm, setting: Setting, contest: Contest, recorder: Recorder) -> None:
    """Exchange random vectors of each size, as the micro-benchmarks do."""
    import torch

    from .contest import HeldBucket

    config = setting.config
    for size in config.sizes:
        noise = torch.Generator().manual_seed(config.seed * comm.size + comm.rank)
        vector = torch.randn(size // 4, generator=noise).to(setting.device)
        held = [HeldBucket(0, vector, [vector], True)]
        recorder.traffic(size, [size // 4])
        for iteration in _iterations(comm, config, f"{size} bytes"):
            recorder.exchange(iteration, list(contest.round(iteration + config.warmup, held)), size)


def _iterations(comm: MPI.Comm, config: Config, what: str = "iteration") -> Iterator[int]:
    """Count from -warmup to iterations, with a progress bar on rank 0 of a terminal."""
    from tqdm import tqdm

    hidden = comm.rank != 0 or not sys.stderr.isatty()
    return iter(tqdm(range(-config.warmup, config.iterations), what, disable=hidden, leave=False))


@contextmanager
def _ready(comm: MPI.Comm, setting: Setting) -> Iterator[Contest]:
    """Start torch.distributed and the methods."""
    from .baselines import process_group
    from .contest import Contest

    config = setting.config
    backend = "nccl" if "nccl" not in setting.skipped and setting.device.type == "cuda" else "gloo"
    with process_group(comm, backend, one_node=len(set(setting.nodes)) == 1):
        compile_kernels()
        contest = Contest(comm, setting.methods, momentum=config.momentum, tie=config.tie, seed=config.seed,
                          adversary=setting.adversary)  # fmt: skip
        yield contest
        contest.close()


def compile_kernels() -> None:
    """Have all kernels compiled before the clock starts."""
    import torch
    from mpi4py import MPI

    from .contest import HeldBucket
    from .hook import VoteState
    from .native import merge_function
    from .votes import planes_for

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
    with mpi.session(PROGRAM) as comm:
        with mpi.refusing(comm, PROGRAM):
            setting = settle(config, comm)
        if comm.rank == 0 and config.format == "table":
            print(f"{PROGRAM}: {comm.size} ranks on {setting.device.type}, batch {setting.config.batch_size} a rank, "
                  f"methods {', '.join(setting.methods)}", file=sys.stderr, flush=True)  # fmt: skip
        began = time.monotonic()
        with _ready(comm, setting) as contest:
            recorder = Recorder(comm, setting)
            recorder.wrong = contest.probe(setting.device)
            (measure_sizes if config.sizes else measure_model)(comm, setting, contest, recorder)
        run = recorder.run
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
        run.end |= {"type": "end", "wrong": recorder.wrong, "wall_s": time.monotonic() - began,
                    "peak_bytes": comm.allgather(peak)}  # fmt: skip
        code = finish(run, setting, config) if comm.rank == 0 else 0
        return int(comm.bcast(code))


def finish(run: records.Run, setting: Setting, config: Config) -> int:
    """Keep the record, print the table, and say what was wrong; return the exit code."""
    faults = []
    try:
        records.write(setting.path, run.lines())
    except OSError as error:
        faults.append(f"the record could not be written: {error}")
    print(table.render(run, config.format, config.per_iteration), flush=True)
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
