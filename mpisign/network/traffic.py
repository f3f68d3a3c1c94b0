"""How many bytes each rank sends and receives in a vote or an all-reduce. Needs neither MPI nor kernels.

What is sent is booked by what a collective delivers, not by how an MPI library relays it: an all-to-all or all-gather
of blocks m sends (P - 1) m and receives (P - 1) m; a gather or broadcast costs its root (P - 1) m and every other
rank m; an all-reduce of m costs 2 (P - 1) / P m both ways, the least that is possible (Patarasuk & Yuan 2009). The
roll is an all-gather. A rank that is absent sends what it would send anyway.

Counted are coordinates n, words W of BITS signs each, and counters: blocks of K planes of BLOCK words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..coding.sizes import BLOCK, WORD, blocks_for, planes_for, roll_for, share_for

# int64 (P, 2): bytes that each rank sends and receives
Traffic = NDArray[np.int64]


def all_reduce(m: int, P: int) -> Traffic:
    """Return what an all-reduce of m bytes makes each of P ranks send and receive, at the least."""
    least = 2 * (P - 1) * m // P
    return _both(least, least, P)


def reduce_shares(n: int, size: int, P: int) -> Traffic:
    """Return what moves where each of P ranks reduces its share of n elements of so many bytes, and hands it out.

    An all-to-all and an all-gather of the shares, of which the last ones may be padded.
    """
    m = 2 * (P - 1) * share_for(n, P) * size
    return _both(m, m, P)


def _both(sent: NDArray[np.int64] | int, received: NDArray[np.int64] | int, P: int) -> Traffic:
    return np.stack([np.broadcast_to(sent, P), np.broadcast_to(received, P)], axis=1).astype(np.int64)


def _back(tie: str, ballots: int) -> int:
    """Return how many bits a coordinate's vote has on the way back: with two ballots a rank it may be 0."""
    return 2 if tie == "zero" or ballots == 2 else 1


def _gather(m: int, roots: NDArray[np.bool_], ranks: NDArray[np.int64] | int) -> Traffic:
    """Book gathers of m bytes from each of so many ranks to their root."""
    return _both(np.where(roots, 0, m), np.where(roots, (ranks - 1) * m, 0), len(roots))


def _broadcast(m: int, roots: NDArray[np.bool_], ranks: NDArray[np.int64] | int) -> Traffic:
    """Book broadcasts of m bytes from each root to its ranks."""
    return _gather(m, roots, ranks)[:, ::-1]


def _allgather_phases(W: int, tie: str, nodes: Sequence[int], ballots: int) -> list[Traffic]:
    P = len(nodes)
    m = (P - 1) * ballots * W * WORD
    return [_both(m, m, P)]


def _server_phases(W: int, tie: str, nodes: Sequence[int], ballots: int) -> list[Traffic]:
    P = len(nodes)
    root = np.arange(P) == 0
    return [_gather(ballots * W * WORD, root, P), _broadcast(_back(tie, ballots) * W * WORD, root, P)]


def _alltoall_phases(W: int, tie: str, nodes: Sequence[int], ballots: int) -> list[Traffic]:
    P = len(nodes)
    m, back = (P - 1) * share_for(W, P) * WORD, _back(tie, ballots)
    return [_both(ballots * m, ballots * m, P), _both(back * m, back * m, P)]


def _counter_bytes(W: int, ballots: int) -> int:
    return blocks_for(W) * planes_for(ballots) * BLOCK * WORD


def _merges(W: int, tie: str, P: int, ballots: int, among: int) -> list[Traffic]:
    """Book the all-reduces, among so many ranks, of the counters of P and of where nobody votes, if ties don't tell."""
    merges = [all_reduce(_counter_bytes(W, ballots * P), among)]
    return merges if tie == "zero" or ballots == 1 else [*merges, all_reduce(W * WORD, among)]


def _reduce_phases(W: int, tie: str, nodes: Sequence[int], ballots: int) -> list[Traffic]:
    P = len(nodes)
    return _merges(W, tie, P, ballots, P)


def _hierarchical_phases(W: int, tie: str, nodes: Sequence[int], ballots: int) -> list[Traffic]:
    P = len(nodes)
    found, first, of, ranks = np.unique(np.asarray(nodes), return_index=True, return_inverse=True, return_counts=True)
    leads, merges = np.isin(np.arange(P), first), _merges(W, tie, P, ballots, len(found))
    among = np.zeros((len(merges), P, 2), np.int64)
    among[:, first] = merges
    inward = _gather(ballots * W * WORD, leads, ranks[of])
    return [inward, *among, _broadcast(_back(tie, ballots) * W * WORD, leads, ranks[of])]


# What one vote of each exchange moves, phase after phase: W words, the tie rule, each rank's node number and how many
# ballots each casts -> traffic.
PHASES: dict[str, Callable[[int, str, Sequence[int], int], list[Traffic]]] = {
    "allgather": _allgather_phases,
    "server": _server_phases,
    "alltoall": _alltoall_phases,
    "reduce": _reduce_phases,
    "hierarchical": _hierarchical_phases,
}


def phases(
    exchange: str, W: int, *, tie: str, nodes: Sequence[int], parts: int = 0, abstain: bool = False
) -> list[Traffic]:
    """Return what one vote moves, phase after phase; the arguments are those of `vote`."""
    moved = PHASES[exchange](W, tie, nodes, 2 if abstain else 1)
    if parts:  # the roll goes beside the first phase
        m = (len(nodes) - 1) * roll_for(parts) * WORD
        moved[0] = moved[0] + _both(m, m, len(nodes))
    return moved


def vote(exchange: str, W: int, *, tie: str, nodes: Sequence[int], parts: int = 0, abstain: bool = False) -> Traffic:
    """Return the bytes that each rank sends and receives in one vote.

    `nodes` is each rank's node number, `parts` the number of parameters in the roll, which is not called with none.
    Ranks that may `abstain` by coordinate cast two ballots, and two bits a coordinate come back.
    """
    total: Traffic = np.sum(phases(exchange, W, tie=tie, nodes=nodes, parts=parts, abstain=abstain), axis=0)
    return total


def in_turn(phases: Iterable[Traffic]) -> int:
    """Return the bytes that go over the busiest link one after the other: links carry both ways at once."""
    return sum(int(phase.max()) for phase in phases)
