"""Train a classifier by majority vote of signs, or by a dense rival, over MPI.

mpirun -n 8 python -m mpisign.train --data PATH --model resnet50
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..methods.catalogue import needs_nccl
from ..ranks import agreement, launch, options
from ..report import records
from ..voting.adversary import traitors
from .recipe import Recipe

if TYPE_CHECKING:
    from mpi4py import MPI

    from ..ranks.place import Place
    from ..workload.data import Pictures
    from .training import Training

PROGRAM = "mpisign.train"
STOPPED = 85  # the exit code of a run that was told to stop and left a checkpoint: a job script may requeue it


@dataclass(frozen=True)
class Setting:
    """Where a training takes place: settled once, on each rank, before anything is exchanged."""

    config: Recipe
    place: Place
    train: Pictures
    validate: Pictures
    adversary: str | None
    folder: Path
    resume: Path | None  # the checkpoint to go on from


def settle(config: Recipe, comm: MPI.Comm) -> Setting:
    """Look at the machine, collectively, then check the arguments: a fault may raise on one rank alone.

    Raises:
        ValueError: an argument can't be met; it is named.

    """
    from ..ranks import place
    from ..workload import models
    from ..workload.data import Pictures, augmentation, evaluation
    from . import checkpoint

    here = place.find(comm, config.share_gpus)
    if config.votes and config.optimizer != "sgd":
        raise ValueError(f"optimizer: {config.optimizer} needs the mean of the gradients, a vote is applied by sgd")
    if needs_nccl(config.method) and here.without_nccl:
        raise ValueError(f"method: {config.method} cannot run: {here.without_nccl}")
    if not 0 < config.bucket_mb < math.inf:
        raise ValueError(f"bucket_mb: must be above 0, got {config.bucket_mb}")
    if not config.lr_step:
        raise ValueError("lr_step: must be above 0")
    guilty = traitors(config.adversaries, comm.size, config.seed)
    models.check(config.model, config.image_size, config.batch_size)
    if not config.data:
        raise ValueError("data: tell the folder of the pictures (--data PATH)")
    train = Pictures(Path(config.data, "train"), augmentation(config.image_size), config.seed, config.image_size)
    validate = Pictures(Path(config.data, "val"), evaluation(config.image_size), config.seed, config.image_size)
    if train.classes != validate.classes:
        raise ValueError(
            f"data: train/ and val/ have different classes: {_difference(train.classes, validate.classes)}"
        )
    if len(train) < config.batch_size * comm.size:
        raise ValueError(f"batch_size: {config.batch_size} pictures on each of {comm.size} ranks are more than the "
                         f"{len(train)} in {config.data}/train")  # fmt: skip
    date = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    folder = Path(config.output or f"runs/{date}-{config.model}-{config.method}")
    if config.resume and not config.output:
        raise ValueError("resume: tell the folder of the run to go on with (--output FOLDER)")
    resume = None
    if comm.rank == 0:
        resume = next(reversed(checkpoint.found(folder)), None)
        _check_output(folder, config.resume)
    adversary = config.adversary if comm.rank in guilty else None
    return Setting(config, here, train, validate, adversary, folder, resume)


def _difference(some: list[str], others: list[str]) -> str:
    return ", ".join(sorted(set(some) ^ set(others))[:5]) or "their order"


def _check_output(folder: Path, resume: bool) -> None:
    fault = records.unwritable(folder / "log.jsonl")
    if fault:
        raise ValueError(f"output: {fault}")
    if not resume and folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"output: {folder} is not empty; --resume goes on with what is in it")


def check_agreed(comm: MPI.Comm, pictures: Pictures, part: str) -> None:
    """Raise a ValueError on all ranks unless all see the same pictures. Collective."""
    everyone = comm.allgather(pictures.fingerprint())
    for rank, other in enumerate(everyone):
        if other != everyone[0]:
            what = "other names than rank 0"
            if other[:2] != everyone[0][:2]:
                what = "{} classes and {} pictures, rank 0 {} and {}".format(*other[:2], *everyone[0][:2])
            raise ValueError(f"data: rank {rank} sees {what} in {part}/")


def _parsed(line: str) -> dict[str, Any]:
    """Return a line of a log; nothing of one that a killed job left half-written."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


class Log:
    """The lines of a run, in `log.jsonl`; on rank 0. What can't be written now, on a full disk, is kept for later."""

    def __init__(self, path: Path) -> None:
        self.path, self._waiting, self.fault = path, list[str](), ""

    def begin(self, head: dict[str, Any], epoch: int, step: int) -> None:
        """Write the first line anew, and keep of an older log what came before that epoch and step."""
        kept = []
        with contextlib.suppress(FileNotFoundError):
            lines = map(_parsed, self.path.read_text().splitlines())
            kept = [line for line in lines if (line.get("type") == "iteration" and line["step"] <= step)
                    or (line.get("type") == "epoch" and line["epoch"] < epoch)]  # fmt: skip
        records.write(self.path, [json.dumps(line) for line in (head, *kept)])

    def add(self, line: dict[str, Any]) -> None:
        """Append a line."""
        self._waiting.append(json.dumps(line) + "\n")
        if len(self._waiting) >= 20 or line["type"] == "epoch":
            self.flush()

    def flush(self) -> None:
        """Write what waits; a failure is told once."""
        try:
            size = self.path.stat().st_size
            try:
                with self.path.open("a") as file:
                    file.writelines(self._waiting)
            except OSError:
                with contextlib.suppress(OSError), self.path.open("r+") as file:
                    file.truncate(size)  # no half line
                raise
            self._waiting, self.fault = [], ""
        except OSError as error:
            if not self.fault:
                _say(f"WARNING: the log could not be written: {error}; its lines are kept for later")
            self.fault = str(error)


def _say(text: str) -> None:
    print(f"{PROGRAM}: {text}", file=sys.stderr, flush=True)


def _tell(config: Recipe, line: dict[str, Any]) -> None:
    """Print the line of an epoch."""
    skipped = f", {line['skipped']} pictures left out" if line["skipped"] else ""
    print(f"epoch {line['epoch'] + 1}/{config.epochs}: loss {line['loss']:.4f}, validation loss "
          f"{line['validation_loss']:.4f}, top-1 {line['top1']:.2%}, top-5 {line['top5']:.2%}, "
          f"{line['images_per_s']:.4g} images/s, {line['seconds']:.4g} s{skipped}", flush=True)  # fmt: skip


class Stop:
    """Whether the job was told to stop, by SIGUSR1 or SIGTERM: schedulers send them some time before the end."""

    def __init__(self) -> None:
        self.told = False
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, self._hear)

    def _hear(self, number: int, frame: Any) -> None:
        self.told = True

    def __call__(self) -> bool:
        return self.told


def run(training: Training, setting: Setting, log: Log) -> int:
    """Train all epochs; return the exit code: 0, 1 after a fault, STOPPED."""
    from .training import Agreed

    config, first = setting.config, training.comm.rank == 0
    fault = None
    while training.position.epoch < config.epochs:
        try:
            done = training.run_epoch()
        except Agreed as error:
            if first:
                _say(f"error: {error}")
            return 1
        finally:
            if first:
                log.flush()
        last = training.position.epoch == config.epochs
        if done and training.position.epoch % config.checkpoint_every and not last:
            continue
        fault = training.save(setting.folder)
        if fault and first:
            _say(f"WARNING: no checkpoint at step {training.position.step}: {fault}")
        if not done:
            if first and not fault:
                _say(f"told to stop: checkpoint left in {setting.folder} at step {training.position.step}; "
                     "--resume goes on")  # fmt: skip
            return 1 if fault else STOPPED
    return 1 if training.comm.bcast(bool(fault or log.fault)) else 0


def head_of(setting: Setting) -> dict[str, Any]:
    """Return the first line of a log."""
    config = dataclasses.asdict(setting.config) | {"data": Path(setting.config.data).name}
    del config["output"], config["resume"]
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"type": "train", "format": 1, "created": created, "config": config, "machine": setting.place.machine}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 1 after a fault, 85 if told to stop. Faulty input exits with 2."""
    config = options.parse(Recipe, PROGRAM, __doc__.splitlines()[0], arguments)
    with launch.session(PROGRAM) as comm:
        stop = Stop()
        with agreement.refusing(comm, PROGRAM):
            setting = settle(config, comm)
        with agreement.refusing(comm, PROGRAM):
            check_agreed(comm, setting.train, "train")
            check_agreed(comm, setting.validate, "val")
        from ..ranks import place

        with place.telling_of_memory():
            return _main(comm, setting, stop)


def _main(comm: MPI.Comm, setting: Setting, stop: Stop) -> int:
    from tqdm import tqdm

    from ..ranks.group import process_group
    from . import checkpoint
    from .training import Training

    config, first, log = setting.config, comm.rank == 0, Log(setting.folder / "log.jsonl")
    steps = len(setting.train) // comm.size // config.batch_size * config.epochs
    bar = tqdm(total=steps, disable=not (first and sys.stderr.isatty()), leave=False, unit="step")

    def note(line: dict[str, Any]) -> None:
        if first:
            log.add(line)
            if line["type"] == "epoch":
                with bar.external_write_mode():
                    _tell(config, line)
            else:
                bar.n = line["step"]
                bar.set_postfix(loss=line["loss"])

    held = contextlib.ExitStack()  # closed at the end alone: one rank that fails must not wait for the others
    held.enter_context(process_group(comm, setting.place.backend, setting.place.one_node))
    training = Training(comm, config, setting.place, setting.train, setting.validate,
                        adversary=setting.adversary, stop=stop, log=note, held=held)  # fmt: skip
    resume = comm.bcast(setting.resume)
    notes = []
    if resume is not None:
        with agreement.refusing(comm, PROGRAM):
            notes = training.load(resume)
    if first:
        checkpoint.clear(setting.folder)
        log.begin(head_of(setting), training.position.epoch, training.position.step)
        at = training.position
        if resume:
            print(f"resumed from {resume}, epoch {at.epoch + 1}, step {at.step}", flush=True)
        for text in notes:
            _say(f"WARNING: {text}")
        if training.idle:
            _say(f"no gradient, so left as they are: {', '.join(training.idle)}")
    code = run(training, setting, log)
    bar.close()
    held.close()
    return code


if __name__ == "__main__":
    sys.exit(main())
