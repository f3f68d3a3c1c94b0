"""Where a training takes place: the machine, the pictures, and the folder of its checkpoints."""

from __future__ import annotations

import dataclasses
import importlib.util
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..methods.method import MPI, NCCL, Terms
from ..methods.table import METHODS
from ..ranks import place
from ..report import records
from ..voting.adversary import traitors
from ..workload import models
from ..workload.data import Pictures, augmentation, evaluation
from . import checkpoint, log
from .rate import Rate, rate_of
from .recipe import DEFAULT, Recipe

if TYPE_CHECKING:
    from ..ranks.launch import Comm
    from ..ranks.place import Place


@dataclass(frozen=True)
class Setting:
    """Where a training takes place: settled once, on each rank, before anything is exchanged.

    `config` is what was asked for, with the method and the learning rate that are taken where none was.
    """

    config: Recipe
    rate: Rate
    place: Place
    train: Pictures
    validate: Pictures | None
    fingerprints: dict[str, tuple[int, int, str]]  # of the pictures in train, and in val if there are any
    adversary: str | None
    folder: Path
    resume: Path | None  # the checkpoint to go on from; rank 0 knows
    broken: dict[Path, str]  # what is wrong with newer ones; rank 0 knows

    @property
    def terms(self) -> Terms:
        """On what terms gradients are exchanged; each time with spans of their own."""
        config = self.config
        return Terms(config.momentum, config.tie, config.seed, self.adversary,
                     takes_device_memory=self.place.takes_device_memory)  # fmt: skip


def settle(config: Recipe, comm: Comm) -> Setting:
    """Look at the machine, collectively, then check the arguments: a fault may raise on one rank alone.

    Raises:
        ValueError: an argument can't be met; it is named.

    """
    here = place.find(comm, config.share_gpus)
    default = DEFAULT if here.without_mpi is None else f"{DEFAULT}-{here.backend}"
    config = dataclasses.replace(config, method=config.method or default)
    if config.votes and config.optimizer != "sgd":
        raise ValueError(f"optimizer: {config.optimizer} needs the mean of the gradients, a vote is applied by sgd")
    for need, fault in {MPI: here.without_mpi, NCCL: here.without_nccl}.items():
        if fault and need in METHODS[config.method].needs:
            raise ValueError(f"method: {config.method} cannot run: {fault}")
    if not config.lr_step:
        raise ValueError("lr_step: must be above 0")
    guilty = traitors(config.adversaries, comm.size, seed=config.seed)
    models.check(config.model, config.image_size, batch_size=config.batch_size)
    if not config.data:
        raise ValueError("data: tell the folder of the pictures (--data PATH)")
    size = config.image_size
    train = Pictures(Path(config.data, "train"), augmentation(size), seed=config.seed, image_size=size)
    validate, pictures = None, {"train": train}
    if Path(config.data, "val").exists():
        validate = Pictures(Path(config.data, "val"), evaluation(size), seed=config.seed, image_size=size)
        pictures["val"] = validate
    elif config.evaluate:
        raise ValueError(f"evaluate: there is no {config.data}/val")
    if validate is not None and train.classes != validate.classes:
        raise ValueError(
            f"data: train/ and val/ have different classes: {_difference(train.classes, validate.classes)}"
        )
    if len(train) < config.batch_size * comm.size:
        raise ValueError(f"batch_size: {config.batch_size} pictures on each of {comm.size} ranks are more than the "
                         f"{len(train)} in {config.data}/train")  # fmt: skip
    date = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    folder = Path(config.output or f"runs/{date}-{models.label(config.model)}-{config.method}")
    if config.resume and not config.output:
        raise ValueError("resume: tell the folder of the run to go on with (--output FOLDER)")
    resume: Path | None = None
    broken: dict[Path, str] = {}
    if comm.rank == 0:
        if config.resume:
            resume, broken = checkpoint.newest(folder)
        if config.weights and not Path(config.weights).is_file():
            raise ValueError(f"weights: {config.weights} is no file")
        if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise ValueError("tensorboard: it is not installed: pip install tensorboard")
        if not config.evaluate:
            _check_output(folder, config.resume)
        elif not (config.weights or resume):
            raise ValueError("evaluate: tell what: --weights FILE, or --resume and --output with a checkpoint in it")
    adversary = config.adversary if comm.rank in guilty else None
    rate = rate_of(config, ranks=comm.size)
    config = dataclasses.replace(config, lr=rate.peak)
    fingerprints = {part: seen.fingerprint() for part, seen in pictures.items()}
    return Setting(config, rate, here, train, validate, fingerprints, adversary, folder, resume, broken)


def _difference(some: list[str], others: list[str]) -> str:
    return ", ".join(sorted(set(some) ^ set(others))[:5]) or "their order"


def _check_output(folder: Path, resume: bool) -> None:
    path = folder / "log.jsonl"
    fault = records.unwritable(path) or (log.misfit(path) if resume else None)
    if fault:
        raise ValueError(f"output: {fault}")
    if not resume and folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"output: {folder} is not empty; --resume goes on with what is in it")


def check_agreed(comm: Comm, setting: Setting) -> None:
    """Raise a ValueError on all ranks unless all see the same pictures. Collective."""
    everyone, nothing = comm.allgather(setting.fingerprints), (0, 0, "")
    for part in ("train", "val"):
        ours = everyone[0].get(part, nothing)
        for rank, other in enumerate(fingerprints.get(part, nothing) for fingerprints in everyone):
            if other != ours:
                what = "other names than rank 0"
                if other[:2] != ours[:2]:
                    what = "{} classes and {} pictures, rank 0 {} and {}".format(*other[:2], *ours[:2])
                raise ValueError(f"data: rank {rank} sees {what} in {part}/")


def head_of(setting: Setting) -> dict[str, Any]:
    """Return the first line of a log."""
    asked = setting.config
    config = dataclasses.asdict(asked) | {"data": Path(asked.data).name, "weights": Path(asked.weights).name}
    for name in ("output", "resume", "evaluate", "tensorboard", "quiet"):  # they say nothing about what is trained
        del config[name]
    pictures = {f"{part}_{what}": fact for part, fingerprint in setting.fingerprints.items()
                for what, fact in zip(("classes", "pictures", "names"), fingerprint, strict=True)}  # fmt: skip
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"type": "train", "format": log.FORMAT, "created": created, "config": config,
            "kind": METHODS[asked.method].kind, "machine": setting.place.machine, "pictures": pictures}  # fmt: skip
