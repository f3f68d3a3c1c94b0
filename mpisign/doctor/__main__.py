"""What is wrong with this machine, its MPI or how the ranks were started? One line for each check, with what to do.

mpirun -n 16 python -m mpisign.doctor
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ..ranks import agreement, launch, options
from ..ranks.options import UsageError, option, positive
from ..ranks.progress import EVERY
from . import diagnosis, examination
from .examination import Facts
from .finding import ERROR, Finding

PROGRAM = "mpisign.doctor"
GRACE = 2.0  # seconds; the launcher ends all ranks with the first, and the one that speaks may have something to say
PR_SET_PDEATHSIG = 1  # prctl(2): the patient goes with the one who waits


@dataclass(frozen=True)
class Config:
    """How the doctor is asked."""

    limit: int = option(120, "seconds until ranks that hang are given up", type=positive, metavar="SECONDS")
    format: str = option("text", "how the result is printed", choices=("text", "json"))
    quiet: bool = option(False, "say nothing on stderr but errors")


def render(findings: Sequence[tuple[str, Finding]], form: str) -> str:
    """Return findings as lines, or as JSON."""
    if form == "json":
        return json.dumps([{"check": name, "level": its.level, "text": its.text} for name, its in findings], indent=1)
    return "\n".join(f"{its.level:<7}  {name}: {' '.join(its.text.split())}" for name, its in findings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, or 1 if an error was found. Faulty input exits with 2.

    A rank is two processes from here on. The patient is examined, and MPI may hang or end it; the other one waits,
    and then says what the patient had found out until then.
    """
    asked = options.parse(Config, PROGRAM, __doc__.splitlines()[0], arguments)
    reader, writer = os.pipe()
    patient = os.fork()
    if patient == 0:
        os.close(reader)
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        try:
            return _examine(asked, writer)
        except SystemExit:  # refused
            os.write(writer, b"%d\n" % launch.FAULTY)
            raise
    os.close(writer)
    if isinstance(asked, UsageError):
        return _attend(patient, reader, Config(quiet=True))
    return _attend(patient, reader, asked)


def _examine(asked: Config | UsageError, writer: int) -> int:
    """Look at this rank, join the others, and let rank 0 print what all found; return the exit code."""

    def going_on(facts: Facts, check: str, fault: str) -> None:
        findings = [*diagnosis.diagnose([facts]), (check, Finding(ERROR, fault))]
        os.write(writer, json.dumps([(name, its.level, its.text) for name, its in findings]).encode() + b"\n")

    def meet(comm: launch.Comm) -> None:
        if launch.started_singly(comm.size) is None:  # else a check tells that
            config = agreement.understood(comm, PROGRAM, asked)
            started = {"the program": PROGRAM, "--limit": config.limit, "--format": config.format}
            agreement.start_alike(comm, PROGRAM, started)

    facts = examination.before_mpi()
    comm: launch.Comm | None = None
    if facts.without_mpi:
        going_on(facts, "ranks", "they did not find each other: not every rank came this far, importing torch is slow, "
                 "or the nodes can't reach MASTER_ADDR or each other (GLOO_SOCKET_IFNAME)")  # fmt: skip
        facts, comm = examination.with_torch(facts, meet)
    else:
        going_on(facts, "MPI library", "mpi4py did not load it")
        facts = examination.with_library(facts)
    if facts.library:
        going_on(facts, "MPI library", "MPI did not start: is there an error above, or anything stale? Else not every "
                 "rank came this far, or the nodes can't reach each other")  # fmt: skip
        facts, comm = examination.with_world(facts, meet)
    if isinstance(asked, UsageError):
        launch.refuse(PROGRAM, str(asked))
    going_on(facts, "ranks", "not every rank came to the end of its examination: one died, or importing torch is slow "
             "here (a higher --limit waits longer), or messages do not get through")  # fmt: skip
    facts = examination.after_mpi(facts)
    facts = examination.with_network(facts, comm) if comm else facts
    ranks = comm.gather(facts) if comm else [facts]
    findings = diagnosis.diagnose(ranks) if ranks else []
    if ranks and launch.launched()[2] == 0:
        print(render(findings, asked.format), flush=True)
    code = int(any(finding.level == ERROR for _, finding in findings))
    code = comm.bcast(code) if comm else code
    os.write(writer, b"%d\n" % code)
    return code


def _attend(patient: int, reader: int, config: Config) -> int:
    """Wait for the patient and return its exit code; if it hangs, or ends too early, speak for it and return 1."""
    _, ranks, rank = launch.launched()
    tells = rank == 0 and not config.quiet
    if tells:
        print(f"{PROGRAM}: {ranks} rank(s) are examined, for {config.limit} s at most", file=sys.stderr, flush=True)
    began = time.monotonic()
    reports, deadline, end = b"", began + config.limit, "when this rank ended"
    while True:
        ready, _, _ = select.select([reader], [], [], max(0.0, min(EVERY, deadline - time.monotonic())))
        if not ready and time.monotonic() < deadline:
            if tells:
                print(f"{PROGRAM}: {time.monotonic() - began:.0f} s: examining", file=sys.stderr, flush=True)
            continue
        more = os.read(reader, 2**16) if ready else b""
        if not more:
            break
        reports += more
    if not ready:
        end = f"after {config.limit} s"
        os.kill(patient, signal.SIGKILL)
    os.waitpid(patient, 0)
    last = json.loads(reports.splitlines()[-1]) if reports else []
    if isinstance(last, int):
        return last
    findings = [(name, Finding(level, text)) for name, level, text in last]
    if findings and launch.launched()[2] == 0:
        name, finding = findings.pop()
        print(render([*findings, (name, Finding(ERROR, f"{end}: {finding.text}"))], config.format), flush=True)
    elif ready:
        print(f"{PROGRAM}: rank {launch.launched()[2]} ended too early", file=sys.stderr, flush=True)
        time.sleep(GRACE)
    return 1


if __name__ == "__main__":
    sys.exit(main())
