"""Does one-bit majority-vote gradient exchange pay here? Every method exchanges the same gradients; one table answers.

mpirun -n 16 python -m mpisign.bench --model resnet50
torchrun --nproc-per-node 16 -m mpisign.bench --model resnet50
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..ranks import agreement, launch, machine, memory, options, progress
from .config import LEAST, SECONDS, SECONDS_OF_A_SIZE, Config

if TYPE_CHECKING:
    from ..ranks.launch import Comm
    from ..report.records import Run
    from .setting import Setting

PROGRAM = "mpisign.bench"
OWN = ("data", "output", "quiet")  # options that may differ between ranks: paths of a node, or rank 0's alone


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, or 1 if any result was wrong. Faulty input exits with 2."""
    asked = options.parse(Config, PROGRAM, __doc__.splitlines()[0], arguments)
    memory.keep_heap()
    with launch.session(PROGRAM) as comm:
        config = agreement.understood(comm, PROGRAM, asked)
        agreement.start_alike(comm, PROGRAM, machine.started(PROGRAM, config, OWN))
        with progress.telling(PROGRAM, hidden=comm.rank != 0 or config.quiet) as say:
            return _run(comm, config, say)


def _run(comm: Comm, config: Config, say: Callable[[str], None]) -> int:
    """Measure what was asked for; return the exit code."""
    from ..methods.table import METHODS, ready
    from ..ranks import place, wires
    from ..ranks.group import process_group
    from .compiling import compile_kernels
    from .measure import measure
    from .setting import new_run, settle

    with agreement.refusing(comm, PROGRAM):
        setting = settle(config, comm)
    here = setting.place
    say(greeting(setting))
    if here.device.type == "cpu":
        fit(setting, comm)
    began, run, terms = time.monotonic(), new_run(setting), setting.terms
    run.end["type"] = "end"
    progress.at("trying the network")
    run.head["network"] = wires.network(comm, here.nodes)
    with place.telling_of_memory(), process_group(comm, here.backend, one_node=here.one_node):
        progress.at("compiling")
        compile_kernels(comm)
        with ready(comm, {name: METHODS[name] for name in setting.methods}, terms=terms) as methods:
            progress.at("making the model")
            measure(run, comm, setting=setting, methods=methods, terms=terms)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    run.end |= {"wall_s": time.monotonic() - began, "peak_bytes": comm.allgather(peak)}
    code = finish(run, setting, say) if comm.rank == 0 else 0
    return int(comm.bcast(code))


def greeting(setting: Setting) -> str:
    """Say where a run takes place, what is measured, how long that takes at least, and how much memory."""
    config, here = setting.config, setting.place
    what, rounds = [here.told], f"{config.iterations} iterations" if config.iterations else ""
    if config.sizes:
        what.append(f"{len(config.sizes)} sizes, {config.sizes[0]} to {config.sizes[-1]} bytes")
        rounds = rounds or f"{SECONDS_OF_A_SIZE * len(config.sizes):.0f} s or more"
    else:
        what.append(f"{config.model}, batch {config.batch_size} a rank, {config.schedule}")
        rounds = rounds or f"{SECONDS:.0f} s or more, and {LEAST} rounds or more"
    if config.until:
        rounds = f"until the intervals are narrow, {config.time_cap:.0f} s at most"
    what += [f"methods {', '.join(setting.methods)}", rounds]
    if here.device.type == "cpu":
        what.append(f"about {sum(setting.memory.values()) / 1e9:.2f} GB of memory a rank")
    return "; ".join(what)


def fit(setting: Setting, comm: Comm) -> None:
    """Warn where the memory of a node is tight for its ranks, and refuse where it will not suffice. Collective."""
    from .memory import nodes, verdict

    found = nodes(comm, setting.place.nodes)
    if not found:
        return
    warning, fault = verdict(sum(setting.memory.values()), found)
    if fault and not setting.config.anyway:
        launch.refuse(PROGRAM, fault, comm)
    if comm.rank == 0 and (warning or fault):
        print(f"{PROGRAM}: WARNING: {warning or fault}", file=sys.stderr, flush=True)


def finish(run: Run, setting: Setting, say: Callable[[str], None]) -> int:
    """Keep the record, print the table, and say what was wrong; return the exit code."""
    from ..report import records, table, text
    from ..report.summary import summarize

    config, faults = setting.config, []
    try:
        records.write(setting.path, run.lines())
    except OSError as error:
        faults.append(f"the record could not be written: {error}")
    printed = table.render(
        summarize(run),
        config.format,
        wide=config.wide,
        per_iteration=config.per_iteration,
        width=text.terminal_width(),
    )
    print(printed, flush=True)
    if not faults:
        say(f"record kept in {setting.path}")
    if run.end["wrong"]:
        faults.append(f"{run.end['wrong']} wrong coordinates")
    if run.end.get("replicas_identical") is False:
        faults.append("the replicas differ between ranks")
    for fault in faults:
        print(f"{PROGRAM}: error: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
