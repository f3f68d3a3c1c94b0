"""Whether the ranks of a run fit into the memory of their nodes: an estimate, made before there are any weights.

python -m mpisign.bench.memory MODEL RANKS prints how many ranks to start here: so many, or as many as fit.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from typing import NamedTuple

from ..coding.sizes import planes_for

# Of what is free: from here on there is a warning, and from there on no start.
TIGHT, FULL = 0.8, 0.95
LIBRARIES = 500_000_000  # bytes: measured with torch's build for CUDA, whose import alone takes 290 million
CHECKING = 50_000_000  # of temporary arrays, in pieces of a size that does not grow
BUCKET = 7_000_000  # coordinates of a large bucket of DDP's


class Room(NamedTuple):
    """What a node has for its ranks: how many there are, and bytes, those that they have taken already among them."""

    ranks: int
    bytes: int


def estimate(n: int, activations: int, P: int, methods: Collection[str], *, weights: bool = True) -> dict[str, int]:
    """Return the bytes that a rank on a CPU takes at most, by what they are for; of n coordinates, and P ranks."""
    votes = any(name.startswith("vote-") for name in methods)
    gathers = any(name.startswith(("vote-allgather", "vote-server", "vote-hierarchical")) for name in methods)
    rows = max(P + 1 if gathers else 2, planes_for(P) + 2 if "vote-reduce" in methods else 0)
    return {
        "libraries": LIBRARIES,
        "weights": 4 * n * weights,
        "gradient": 4 * n,
        "momentum": 4 * n * votes,
        "copies": 4 * n * (1 + votes),  # of the gradient and the momentum, to begin alike
        "backward": activations,
        "exchanges": rows * n // 8 * votes + 4 * min(n, BUCKET) * ("bf16-mpi" in methods)
        + 2 * n * bool({"fp16", "bf16"} & set(methods)),
        "checks": 16 * n // P + n // 2 + CHECKING,
    }  # fmt: skip


def verdict(need: int, rooms: Sequence[Room]) -> tuple[str, str | None]:
    """Return a warning ("" if there is none) and what to refuse the start with; `need` is the bytes of a rank."""
    room = max(rooms, key=lambda room: room.ranks / max(1, room.bytes))
    share, nodes = need * room.ranks / max(1, room.bytes), f"on each of {len(rooms)} nodes" if len(rooms) > 1 else ""
    told = (f"memory: {room.ranks} ranks need about {need * room.ranks / 1e9:.1f} GB, {need / 1e9:.2f} each, and "
            f"{room.bytes / 1e9:.1f} GB are free")  # fmt: skip
    if share > FULL:
        fit = fitting(need, room.bytes)
        ranks = " ".join(filter(None, (str(fit or "no"), "rank" if fit == 1 else "ranks", nodes)))
        return "", f"{told}: {ranks} would fit (--anyway starts them all)"
    return (f"{told}: that is tight" if share > TIGHT else ""), None


def fitting(need: int, free: int) -> int:
    """Return how many ranks fit into so many bytes."""
    return int(FULL * free // need)


def main(arguments: Sequence[str]) -> int:
    """Print how many ranks of a model to start on this machine."""
    from ..methods.table import METHODS
    from ..ranks import memory
    from ..workload import models

    model, ranks = arguments[0], int(arguments[1])
    size, methods = models.check(model, 224, batch_size=1), [name for name in METHODS if not METHODS[name].unasked]
    need = sum(estimate(size.coordinates, size.activations, ranks, methods).values())
    free = memory.available()
    fit = ranks if free is None else max(1, min(ranks, fitting(need, free + memory.taken())))
    if fit < ranks:
        print(f"memory suffices for {fit} of {ranks} ranks, {need / 1e9:.2f} GB each: so many are started",
              file=sys.stderr)  # fmt: skip
    print(fit)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
