"""Where a run takes place: what the machine has, which methods can run on it, and the record that is begun."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..methods.method import MATRICES, MPI, NCCL, Terms
from ..methods.rivals import REFERENCES
from ..methods.table import METHODS
from ..ranks import place
from ..ranks.clock import Spans
from ..report import records
from ..voting.adversary import traitors
from ..workload import data, models
from . import memory
from .config import Config

if TYPE_CHECKING:
    from ..ranks.launch import Comm
    from ..ranks.place import Place
    from ..workload.data import Batch


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
    memory: dict[str, int]  # bytes a rank, by what they are for: an estimate

    @property
    def terms(self) -> Terms:
        """On what terms the methods exchange; each time with spans of their own."""
        config = self.config
        return Terms(config.momentum, config.tie, config.seed, self.adversary, Spans(config.trace),
                     self.place.takes_device_memory)  # fmt: skip


def settle(config: Config, comm: Comm) -> Setting:
    """Look at the machine, collectively, then check the arguments: a fault may raise on one rank alone.

    Raises:
        ValueError: an argument can't be met; it is named.

    """
    here = place.find(comm, config.share_gpus)
    config = dataclasses.replace(config, batch_size=config.batch_size or (32 if here.device.type == "cuda" else 1))
    methods, skipped = _chosen(config, here)
    guilty = traitors(config.adversaries, comm.size, seed=config.seed)
    if config.sizes and config.schedule == "overlap":
        raise ValueError("schedule: a sweep over sizes has no backward to overlap with")
    batches, size = None, models.Size(max(config.sizes, default=0) // 4, 0)
    if not config.sizes:
        size = models.check(config.model, config.image_size, batch_size=config.batch_size)
        batches = _batches(config, own_seed=config.seed * comm.size + comm.rank)
    path = Path(config.output) if config.output else _default_path(config, here.machine)
    fault = records.unwritable(path) if comm.rank == 0 else None
    if fault:
        raise ValueError(f"output: {fault}")
    adversary = config.adversary if comm.rank in guilty else None
    need = memory.estimate(*size, comm.size, [METHODS[name] for name in methods], weights=batches is not None)
    return Setting(config, here, methods, skipped, adversary, path, batches, need)


def _chosen(config: Config, here: Place) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the methods of a run, and why the others are left out."""
    lacking = {MPI: here.without_mpi, NCCL: here.without_nccl, MATRICES: "it compresses matrices, and a sweep has none"}
    if not config.sizes:
        del lacking[MATRICES]
    skipped = {name: fault for name, method in METHODS.items() for need, fault in lacking.items()
               if fault and need in method.needs}  # fmt: skip
    for name in config.methods:
        if name in skipped:
            raise ValueError(f"methods: {name} cannot run: {skipped[name]}")
    if not config.methods and here.device.type == "cpu":
        skipped = {name: method.unasked for name, method in METHODS.items() if method.unasked} | skipped
    return config.methods or tuple(name for name in METHODS if name not in skipped), skipped


def _batches(config: Config, own_seed: int) -> Iterator[Batch]:
    if config.data:
        return data.folder(Path(config.data), batch_size=config.batch_size, image_size=config.image_size, seed=own_seed)
    return data.synthetic(config.batch_size, config.image_size, seed=own_seed)


def _default_path(config: Config, machine: dict[str, Any]) -> Path:
    date = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    overlap = "overlap" if config.schedule == "overlap" else ""
    parts = ("sweep",) if config.sizes else (models.label(config.model), Path(config.data).name, overlap)
    what = "-".join(filter(None, parts))
    name = f"{what}-{machine['ranks']}-ranks"
    return Path("results", records.folder_name(machine), f"{date}-{machine['commit'] or 'no-commit'}-{name}.jsonl")


def new_run(setting: Setting) -> records.Run:
    """Return a record with its first line filled in, but for what only the gradient tells."""
    config = dataclasses.asdict(setting.config)
    for name in ("output", "format", "per_iteration", "quiet", "wide", "anyway"):
        del config[name]  # they say nothing about the times
    config["data"] = Path(config["data"]).name
    baseline = next((name for name in REFERENCES if name in setting.methods), None)
    return records.Run({
        "type": "run", "format": records.FORMAT, "clock": records.CLOCK,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "config": config, "machine": setting.place.machine, "methods": list(setting.methods),
        "kinds": {name: METHODS[name].kind for name in setting.methods},
        "lossy": [name for name in setting.methods if METHODS[name].truth.of == "projection"],
        "skipped": setting.skipped, "baseline": baseline, "traffic": {}, "memory": setting.memory,
    })  # fmt: skip
