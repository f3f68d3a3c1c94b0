"""Try the plain script on ranks that one Python process spawns: `python tests/habits/spawned.py FILE`."""

import sys

import ranks
import torch
import torch.distributed as dist

RANKS = 3


def main(rank: int, path: str) -> None:
    """Be one of the ranks."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{path}.store", rank=rank, world_size=RANKS)
    ranks.try_all(None, path, ["spawned"])
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.spawn(main, (sys.argv[1],), RANKS)
