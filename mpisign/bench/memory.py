"""Whether the ranks of a run fit into the memory of their nodes: an estimate, made before there are any weights.

python -m mpisign.bench.memory MODEL RANKS prints how many ranks to start here: so many, or as many as fit.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..ranks import memory

if TYPE_CHECKING:
    from ..methods.method import Method
    from ..ranks.launch import Comm

# Of what is free: from here on there is a warning, and from there on no start.
TIGHT, FULL = 0.8, 0.95
LIBRARIES = 500_000_000  # bytes: measured with torch's build for CUDA, whose import alone takes 290 million
CHECKING = 50_000_000  # of temporary arrays, in pieces of a size that does not grow


class Node(NamedTuple):
    """What a node has for its ranks: how many there are, and bytes, those that they have taken already among them."""

    ranks: int
    bytes: int


def nodes(comm: Comm, numbers: Sequence[int]) -> list[Node]:
    """Return the nodes of the ranks, as far as they tell their memory; `numbers` has each rank's node. Collective."""
    found: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, (free, taken) in zip(numbers, comm.allgather((memory.available(), memory.taken())), strict=True):
        if free is not None:
            found[number].append((free, taken))
    return [Node(len(ranks), min(free for free, _ in ranks) + sum(taken for _, taken in ranks))
            for ranks in found.values()]  # fmt: skip


def estimate(n: int, activations: int, P: int, methods: Collection[Method], *, weights: bool = True) -> dict[str, int]:
    """Return the bytes that a rank on a CPU takes at most, by what they are for; of n coordinates, and P ranks."""
    votes = any(method.kind == "vote" for method in methods)
    shared: dict[str, int] = defaultdict(int)
    own = 0
    for method in methods:
        buffers = method.buffers(n, P)
        shared[method.kind] = max(shared[method.kind], buffers.shared)
        own += buffers.own
    return {
        "libraries": LIBRARIES,
        "weights": 4 * n * weights,
        "gradient": 4 * n,
        "momentum": 4 * n * votes,
        "copies": 4 * n * (1 + votes),  # of the gradient and the momentum, to begin alike
        "backward": activations,
        "exchanges": sum(shared.values()) + own,
        "checks": 16 * n // P + n // 2 + CHECKING,
    }


def verdict(need: int, nodes: Sequence[Node]) -> tuple[str, str | None]:
    """Return a warning ("" if there is none) and what to refuse the start with; `need` is the bytes of a rank."""
    node = max(nodes, key=lambda node: node.ranks / max(1, node.bytes))
    share, where = need * node.ranks / max(1, node.bytes), f"on each of {len(nodes)} nodes" if len(nodes) > 1 else ""
    told = (f"memory: {node.ranks} ranks need about {need * node.ranks / 1e9:.1f} GB, {need / 1e9:.2f} each, and "
            f"{node.bytes / 1e9:.1f} GB are free")  # fmt: skip
    if share > FULL:
        fit = fitting(need, node.bytes)
        ranks = " ".join(filter(None, (str(fit or "no"), "rank" if fit == 1 else "ranks", where)))
        return "", f"{told}: {ranks} would fit (--anyway starts them all)"
    return (f"{told}: that is tight" if share > TIGHT else ""), None


def fitting(need: int, free: int) -> int:
    """Return how many ranks fit into so many bytes."""
    return int(FULL * free // need)


def main(arguments: Sequence[str]) -> int:
    """Print how many ranks of a model to start on this machine."""
    from ..methods.table import METHODS
    from ..workload import models

    model, ranks = arguments[0], int(arguments[1])
    size = models.check(model, 224, batch_size=1)
    methods = [method for method in METHODS.values() if not method.unasked]
    need = sum(estimate(size.coordinates, size.activations, ranks, methods).values())
    free = memory.available()
    fit = ranks if free is None else max(1, min(ranks, fitting(need, free + memory.taken())))
    if fit < ranks:
        print(f"memory suffices for {fit} of {ranks} ranks, {need / 1e9:.2f} GB each: starting {fit}",
              file=sys.stderr)  # fmt: skip
    print(fit)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
