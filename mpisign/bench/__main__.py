"""Does one-bit majority-vote gradient exchange pay here? Every method exchanges the same gradients; one table answers.

mpirun -n 16 python -m mpisign.bench --model resnet50
torchrun --nproc-per-node 16 -m mpisign.bench --model resnet50
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..ranks import agreement, launch, machine, memory, options
from .config import Config

if TYPE_CHECKING:
    from ..ranks.launch import Comm
    from ..report.records import Run
    from .setting import Setting

PROGRAM = "mpisign.bench"
OWN = ("data", "output")  # options that may differ between ranks: paths of a node, or rank 0's alone


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, or 1 if any result was wrong. Faulty input exits with 2."""
    config = options.parse(Config, PROGRAM, __doc__.splitlines()[0], arguments)
    memory.keep_heap()
    with launch.session(PROGRAM) as comm:
        agreement.start_alike(comm, PROGRAM, machine.started(PROGRAM, config, OWN))
        from ..methods.table import METHODS, ready
        from ..ranks import place, wires
        from ..ranks.group import process_group
        from .compiling import compile_kernels
        from .measure import measure
        from .setting import new_run, settle

        with agreement.refusing(comm, PROGRAM):
            setting = settle(config, comm)
        here = setting.place
        if here.device.type == "cpu":
            fit(setting, comm)
        if comm.rank == 0 and config.format == "table":
            batch = "" if config.sizes else f"batch {setting.config.batch_size} a rank, "
            print(f"{PROGRAM}: {comm.size} ranks on {here.device.type}, {batch}"
                  f"methods {', '.join(setting.methods)}", file=sys.stderr, flush=True)  # fmt: skip
        began, run, terms = time.monotonic(), new_run(setting), setting.terms
        run.end["type"] = "end"
        run.head["network"] = wires.network(comm, here.nodes)
        with place.telling_of_memory(), process_group(comm, here.backend, one_node=here.one_node):
            compile_kernels(comm)
            with ready(comm, {name: METHODS[name] for name in setting.methods}, terms=terms) as methods:
                measure(run, comm, setting=setting, methods=methods, terms=terms)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
        run.end |= {"wall_s": time.monotonic() - began, "peak_bytes": comm.allgather(peak)}
        code = finish(run, setting) if comm.rank == 0 else 0
        return int(comm.bcast(code))


def fit(setting: Setting, comm: Comm) -> None:
    """Warn where the memory of a node is tight for its ranks, and refuse where it will not suffice. Collective."""
    from .memory import Room, verdict

    everyones = [*zip(setting.place.nodes, comm.allgather((memory.available(), memory.taken())), strict=True)]
    rooms = []
    for node in set(setting.place.nodes):
        found = [(free, taken) for number, (free, taken) in everyones if number == node and free is not None]
        if found:
            rooms.append(Room(len(found), min(free for free, _ in found) + sum(taken for _, taken in found)))
    if not rooms:
        return
    warning, fault = verdict(sum(setting.memory.values()), rooms)
    if fault and not setting.config.anyway:
        launch.refuse(PROGRAM, fault, comm)
    if comm.rank == 0 and (warning or fault):
        print(f"{PROGRAM}: WARNING: {warning or fault}", file=sys.stderr, flush=True)


def finish(run: Run, setting: Setting) -> int:
    """Keep the record, print the table, and say what was wrong; return the exit code."""
    from ..report import records, table
    from ..report.summary import summarize

    config, faults = setting.config, []
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
