"""Try habits on these ranks, each plainly and by the vote: `mpirun -n 3 python tests/habits/ranks.py FILE`.

Under torchrun the same, without MPI. FILE gets a line for each habit. Names behind it choose some habits; without any,
those of the table that are tried under mpirun.
"""

import faulthandler
import gc
import json
import os
import sys
import time
import warnings
from typing import Any

import torch
import torch.distributed as dist
from table import HABITS, STARTS
from way import Habit, Way

PATIENCE = 60  # seconds, after which a habit that hangs ends the run; FILE then ends with the one before


def attempt(habit: Habit, way: Way) -> dict[str, Any]:
    """Return how a habit went on this rank."""
    torch.manual_seed(100 + way.rank)
    result: dict[str, Any] = {"loss": None, "raised": "", "digest": ""}
    began = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result["loss"], result["digest"] = habit.run(way), way.digest()
        except Exception as error:
            result["raised"] = f"{type(error).__name__}: {error}"
    torch.set_default_dtype(torch.float32)
    result["warned"] = [str(warning.message) for warning in caught]
    return result | {"seconds": time.process_time() - began}


def try_all(where: Any, path: str, names: list[str]) -> None:
    """Try habits, and write what came of each on all ranks, as it comes."""
    known = {habit.name: habit for habit in HABITS + STARTS}
    names = names or [habit.name for habit in HABITS]
    for name in names:
        tries = {}
        for voting in (False, True) if known[name].verdict == "works" else (True,):
            faulthandler.dump_traceback_later(PATIENCE, exit=True)
            way, ranks = Way(where, voting), [None] * dist.get_world_size()
            dist.all_gather_object(ranks, attempt(known[name], way))
            if not any(rank["raised"] for rank in ranks):
                way.close()
            tries["voted" if voting else "plain"] = ranks
        if dist.get_rank() == 0:
            with open(path, "a") as file:
                file.write(json.dumps({"name": name} | tries) + "\n")
        if name == names[0]:
            gc.freeze()  # DDP has imported much by now, through which the guard would look for models
    faulthandler.cancel_dump_traceback_later()


def main(path: str, *names: str) -> None:
    """Start a process group as it is done under torchrun, or under mpirun."""
    torch.set_num_threads(1)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        dist.init_process_group("gloo")
        try_all(None, path, list(names))
        dist.destroy_process_group()
        return
    from mpi4py import MPI

    from mpisign.ranks.group import process_group

    with process_group(MPI.COMM_WORLD, "gloo", one_node=True):
        try_all(MPI.COMM_WORLD, path, list(names))


if __name__ == "__main__":
    main(*sys.argv[1:])
