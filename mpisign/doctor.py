"""What is wrong with this machine, its MPI or how the ranks were started? One line for each check, with what to do.

mpirun -n 16 python -m mpisign.doctor
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from . import diagnosis, examination, mpi, options
from .diagnosis import ERROR, Finding
from .examination import Facts
from .options import option, positive

PROGRAM = "mpisign.doctor"
GRACE = 2.0  # seconds that a rank that hangs is left for what is said of it to get out


@dataclass(frozen=True)
class Config:
    """How the doctor is asked."""

    limit: int = option(120, "seconds until ranks that hang are given up", type=positive, metavar="SECONDS")
    format: str = option("text", "of what is printed", choices=("text", "json"))


def render(found: Sequence[tuple[str, Finding]], form: str) -> str:
    """Return findings as lines, or as JSON."""
    if form == "json":
        return json.dumps([{"check": name, "level": its.level, "text": its.text} for name, its in found], indent=1)
    return "\n".join(f"{its.level:<7}  {name}: {' '.join(its.text.split())}" for name, its in found)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, or 1 if an error was found. Faulty input exits with 2."""
    config = options.parse(Config, PROGRAM, __doc__.splitlines()[0], arguments)
    speaks = mpi.launched()[2] == 0
    with _watched(config, speaks) as going_on:
        facts = examination.before_mpi()
        going_on(facts, "MPI library", "MPI did not start: look above for what is stale or does not belong together; "
                        "else a rank may not have come this far, or the nodes can't reach each other")  # fmt: skip
        facts, comm = examination.with_mpi(facts)
        going_on(facts, "ranks", "not all ranks came to the end of their examination: importing torch may be slow from "
                        "a busy file system (a higher --limit waits longer), or a rank died")  # fmt: skip
        facts = examination.after_mpi(facts)
        ranks = comm.gather(facts) if comm else [facts]
        found = diagnosis.diagnose(ranks) if ranks else []
        if speaks and ranks:
            print(render(found, config.format), flush=True)
        code = int(any(finding.level == ERROR for _, finding in found))
        return comm.bcast(code) if comm else code


@contextlib.contextmanager
def _watched(config: Config, speaks: bool) -> Iterator[Callable[[Facts, str, str], None]]:
    """End this rank with code 1 when the time is up, also where it hangs inside MPI and no signal handler runs.

    Beside a rank that `speaks`, a process waits: it says what was found if the rank hangs or is ended. The block gets
    the function that tells this process what is known, and under which check it is to say what if nothing follows.
    """
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(config.limit + GRACE, exit=True, file=nowhere)
        reader, writer = os.pipe()
        speaker = os.fork() if speaks else None
        if speaker == 0:
            os.close(writer)
            with contextlib.suppress(BaseException):
                _speak_for(reader, config)
            os._exit(0)
        os.close(reader)

        def going_on(facts: Facts, check: str, fault: str) -> None:
            if speaker:
                found = [*diagnosis.diagnose([facts]), (check, Finding(ERROR, fault))]
                told = [(name, finding.level, finding.text) for name, finding in found]
                os.write(writer, json.dumps(told).encode() + b"\n")

        try:
            yield going_on
        finally:
            if speaker:
                os.kill(speaker, signal.SIGKILL)
                os.waitpid(speaker, 0)
            os.close(writer)
            faulthandler.cancel_dump_traceback_later()


def _speak_for(reader: int, config: Config) -> None:
    """Wait for the rank that writes to `reader`; when it is late, or gone, print the last that it told."""
    told, deadline, end = b"", time.monotonic() + config.limit, f"after {config.limit} s"
    while True:
        ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
        more = os.read(reader, 2**16) if ready else b""
        if not more:
            end = "when this rank was ended" if ready else end
            break
        told += more
    found = [(name, Finding(level, text)) for name, level, text in json.loads(told.splitlines()[-1])]
    name, last = found.pop()
    found.append((name, Finding(last.level, f"{end}: {last.text}")))
    print(render(found, config.format), flush=True)


if __name__ == "__main__":
    sys.exit(main())
