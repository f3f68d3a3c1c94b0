"""Train a classifier by majority vote of signs, or by a dense rival, over MPI or without it.

mpirun -n 8 python -m mpisign.train --data PATH --model resnet50
torchrun --nproc-per-node 8 -m mpisign.train --data PATH --model resnet50
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..ranks import agreement, launch, machine, options, progress
from .recipe import Recipe

if TYPE_CHECKING:
    from ..methods.method import Ready, Terms
    from ..ranks.launch import Comm
    from .log import Log
    from .setting import Setting
    from .stop import Stop
    from .training import Training

PROGRAM = "mpisign.train"
# Options that may differ between ranks: paths of a node, or rank 0's alone.
OWN = ("data", "output", "quiet", "weights")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 1 after a fault, 85 if told to stop. Faulty input exits with 2."""
    asked = options.parse(Recipe, PROGRAM, __doc__.splitlines()[0], arguments)
    with launch.session(PROGRAM) as comm:
        config = agreement.understood(comm, PROGRAM, asked)
        agreement.start_alike(comm, PROGRAM, machine.started(PROGRAM, config, OWN))
        from .stop import Stop

        stop = Stop()
        with progress.telling(PROGRAM, hidden=comm.rank != 0 or config.quiet) as say:
            return _run(comm, config, stop, say)


def _run(comm: Comm, config: Recipe, stop: Stop, say: Callable[[str], None]) -> int:
    """Train as asked for; return the exit code."""
    from ..methods.table import METHODS, ready
    from ..ranks import place
    from ..ranks.group import process_group
    from .setting import check_agreed, settle

    with agreement.refusing(comm, PROGRAM):
        setting = settle(config, comm)
    with agreement.refusing(comm, PROGRAM):
        check_agreed(comm, setting)
    here, terms, config = setting.place, setting.terms, setting.config
    say(greeting(setting))
    chosen = {config.method: METHODS[config.method]}
    with (
        place.telling_of_memory(),
        process_group(comm, here.backend, one_node=here.one_node),
        ready(comm, chosen, terms=terms) as methods,
    ):
        if config.votes:
            methods[config.method].set_schedule(config.schedule)
        return _train(comm, setting, stop=stop, method=methods[config.method], terms=terms)


def greeting(setting: Setting) -> str:
    """Say where a training takes place, and what is trained."""
    config, here = setting.config, setting.place
    steps = len(setting.train) // here.machine["ranks"] // config.batch_size
    what = f"evaluation of {config.model}" if config.evaluate else (
        f"{config.model} by {config.method}, {config.epochs} epochs of {steps} steps, batch {config.batch_size} a rank"
    )  # fmt: skip
    return f"{here.told}; {what}; {len(setting.train)} pictures"


def _train(comm: Comm, setting: Setting, *, stop: Stop, method: Ready, terms: Terms) -> int:
    """Begin or go on; return the exit code."""
    from . import checkpoint, resume, weights
    from .log import Board, Log, Progress
    from .setting import head_of
    from .training import Training

    first = comm.rank == 0
    log = Log(setting.folder / "log.jsonl")
    steps = len(setting.train) // comm.size // setting.config.batch_size * setting.config.epochs
    shown = Progress(log, steps=steps, epochs=setting.config.epochs, hidden=not first or setting.config.quiet)
    training = Training(comm, setting, method=method, terms=terms, stop=stop,
                        log=shown.note if first else lambda line: None)  # fmt: skip
    path = comm.bcast(setting.resume)
    notes = []
    if path is not None:
        with agreement.refusing(comm, PROGRAM):
            notes = resume.load(training, path)
    elif setting.config.weights:
        with agreement.refusing(comm, PROGRAM):
            weights.load(comm, Path(setting.config.weights), training.model)
    for path_of_it, fault in setting.broken.items():
        aside = "" if setting.config.evaluate else f", and this is called {checkpoint.BROKEN}{path_of_it.name} now"
        _say(f"WARNING: {path_of_it} {fault}; an older one is taken{aside}")
    if setting.config.evaluate:
        shown.close()
        progress.at("evaluating")
        return _evaluate(training, path or Path(setting.config.weights))
    if first:
        checkpoint.clear(setting.folder)
        if path is not None:
            checkpoint.set_aside(setting.folder, training.position.step)
        log.begin(head_of(setting), checkpoint=None if path is None else path.name,
                  epochs=training.position.epoch, steps=training.position.step)  # fmt: skip
        if setting.config.tensorboard:
            shown.board = Board(setting.folder, steps=training.position.step)
        _greet(training, setting, path, notes)
    code = run(training, setting, log)
    shown.close()
    if first:
        _tell_folder(setting)
    return code


def _evaluate(training: Training, path: Path) -> int:
    """Evaluate what was read from `path`; return the exit code."""
    from .log import of_validation
    from .stop import EXIT_CODE, Stopped

    try:
        result = training.evaluated()
    except Stopped:
        return EXIT_CODE
    if training.comm.rank == 0:
        print(f"{path}: {of_validation(result)}, {result['validated']:.0f} pictures", flush=True)
    return 0


def _tell_folder(setting: Setting) -> None:
    print(f"run folder: {setting.folder}", flush=True)


def _greet(training: Training, setting: Setting, path: Path | None, notes: list[str]) -> None:
    """Say where a training begins, and what a user has to know of that."""
    _tell_folder(setting)
    if path is not None:
        at, epochs = training.position, setting.config.epochs
        where = f"epoch {at.epoch + 1}" if at.epoch < epochs else f"all {epochs} epochs are done"
        print(f"resumed from {path}, {where}, step {at.step}", flush=True)
    print(setting.rate.told(), flush=True)
    for text in filter(None, [setting.rate.fault(), *notes]):
        _say(f"WARNING: {text}")
    if training.idle:
        _say(f"no gradient, so left as they are: {', '.join(training.idle)}")


def _say(text: str) -> None:
    print(f"{PROGRAM}: {text}", file=sys.stderr, flush=True)


def run(training: Training, setting: Setting, log: Log) -> int:
    """Train all epochs; return the exit code: 0, 1 after a fault, EXIT_CODE if told to stop."""
    from . import resume, weights
    from .stop import EXIT_CODE, Agreed, Stopped

    config, first = setting.config, training.comm.rank == 0
    fault, stopped = None, False
    while training.position.epoch < config.epochs and not stopped:
        best = training.position.best
        try:
            training.run_epoch()
        except Stopped:
            stopped = True
        except Agreed as error:
            if first:
                _say(f"error: {error}")
            return 1
        finally:
            if first:
                log.flush()
        done = training.position
        if first and done.best > best:
            lost = weights.keep_best(setting.folder, training.model)
            if lost:
                _say(f"WARNING: no {weights.BEST} of epoch {done.epoch}: {lost}")
        if not stopped and done.epoch % config.checkpoint_every and done.epoch < config.epochs:
            continue
        fault = resume.save(training, setting.folder)
        if fault and first:
            _say(f"WARNING: no checkpoint at step {done.step}: {fault}")
    if stopped and first and not fault:
        _say(f"told to stop: checkpoint left in {setting.folder} at step {training.position.step}; --resume goes on")
    if stopped:
        return 1 if fault else EXIT_CODE
    return 1 if training.comm.bcast(bool(fault or log.fault)) else 0


if __name__ == "__main__":
    sys.exit(main())
