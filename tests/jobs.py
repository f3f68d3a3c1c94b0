"""Several runs of a command in one start of mpirun, or of torchrun: interpreters and torch are what starting costs.

For runs that end on all ranks by themselves, with an exit code. A rank that dies takes its job with it, so such a run
needs a start of its own.
"""

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from launch import run


@dataclass
class Job:
    """A run of a command: its arguments, the folder it runs in, and a program that is run before.

    The last rank may have arguments and a module of its `own`.
    """

    arguments: tuple[str, ...]
    cwd: Path | str = "."
    before: str = ""
    own: tuple[tuple[str, ...], str] | None = None


@dataclass
class Ended:
    """How a run ended: its exit code, the same on all ranks, and what each rank printed, rank after rank."""

    returncode: int
    stdout: str = ""
    stderr: str = ""
    files: list[str] = field(default_factory=list)  # in its folder


def start(ranks, module, jobs, *, by=run, timeout=240, **extra):
    """Return how each of these runs of a module's `main` ended; `by` is what starts ranks (see `launch`)."""
    with TemporaryDirectory() as folder:
        listed = [asdict(job) | {"cwd": str(job.cwd)} for job in jobs]
        ended = by(ranks, __file__, module, folder, json.dumps(listed), timeout=timeout, **extra)
        assert ended.returncode == 0, ended.stderr
        return [_ended(Path(folder), number, ranks) for number in range(len(jobs))]


def _ended(folder, number, ranks):
    codes, files = json.loads((folder / f"{number}.json").read_text())
    assert len(set(codes)) == 1, codes
    texts = ["".join((folder / f"{number}.{rank}.{name}").read_text() for rank in range(ranks))
             for name in ("stdout", "stderr")]  # fmt: skip
    return Ended(codes[0], *texts, files)


def _do(module, folder, jobs):
    """Do the jobs on this rank."""
    import importlib
    import os

    import torch.distributed as dist

    from mpisign.ranks import torchrun

    if torchrun.launcher():
        comm = torchrun.TorchComm()
    else:
        from mpi4py import MPI

        comm = MPI.COMM_WORLD
    for number, job in enumerate(jobs):
        comm.Barrier()
        os.chdir(job["cwd"])
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            with open(folder / f"{number}.{comm.rank}.{name}", "wb") as file:
                os.dup2(file.fileno(), descriptor)
        exec(job["before"], {"rank": comm.rank})  # noqa: S102
        arguments, named = job["arguments"], module
        if job["own"] and comm.rank == comm.size - 1:
            arguments, named = job["own"]
        try:
            code = importlib.import_module(named).main(arguments)
        except SystemExit as end:
            code = end.code
        sys.stdout.flush()
        sys.stderr.flush()
        if dist.is_initialized():  # it was refused behind the start of torch.distributed
            dist.destroy_process_group()
        codes = comm.gather(code)
        if comm.rank == 0:
            (folder / f"{number}.json").write_text(json.dumps([codes, sorted(path.name for path in Path().iterdir())]))
        comm.Barrier()


if __name__ == "__main__":
    _do(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]))
