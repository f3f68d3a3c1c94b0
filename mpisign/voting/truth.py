"""The reference that votes are compared with, in the run itself: NumPy's packbits and integer sums.

The only kernel shared with what is checked is that of the coins of ties, which the tests hold to Python's integers.
Each rank computes 1 / P of the reference from what all ranks sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..coding import counting
from ..coding.bits import Floats, Words
from ..coding.sizes import BITS, words_for
from ..coding.ties import Tie
from ..ranks import patience

if TYPE_CHECKING:
    from ..ranks.launch import Comm

CHUNK = 2**16  # coordinates at a time: temporary arrays stay in the cache
# The eight signs that each byte of a vote stands for.
_SIGNS = np.where(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"), -1, 1).astype("f4")


def _chunks(n: int) -> Iterator[slice]:
    for start in range(0, n, CHUNK):
        yield slice(start, min(start + CHUNK, n))


def plain_words(gradient: Floats, momentum: Floats | None, *, beta: float) -> Words:
    """Pack the signs of the gradient, or of the momentum after its step; nothing is changed.

    A gradient that is not finite, or too far from the momentum, counts as 0.
    """
    words = np.zeros(words_for(len(gradient)) * 8, np.uint8)
    for part in _chunks(len(gradient)):
        x = _stepped(gradient[part], np.float32(0) if momentum is None else momentum[part], beta=beta)
        packed = np.packbits(x < 0, bitorder="little")
        words[part.start // 8 : part.start // 8 + len(packed)] = packed
    return words.view("<u8").astype(np.uint64, copy=False)


def _stepped(gradient: Floats, momentum: Floats | np.float32, *, beta: float) -> Floats:
    """Return the momentum after its step."""
    with np.errstate(over="ignore", invalid="ignore"):
        step = gradient - momentum
    x = momentum + np.float32(1 - beta) * np.where(np.isfinite(step), step, -momentum)
    return np.asarray(x, np.float32)


def wrong_momentum(
    gradient: Floats, before: Floats, after: Floats, *, beta: float, absent: NDArray[np.bool_], sizes: Sequence[int],
    first: int = 0,
) -> int:  # fmt: skip
    """Count the coordinates in which the momentum has not made its step, up to rounding, or has where it is to rest.

    All float32 (n,), from word `first` of a bucket on, of whose parameters the rank is absent on some: see `hook`.
    """
    resting = np.repeat(absent, sizes)[first * BITS :][: len(gradient)] if absent.any() else None
    wrong = 0
    for part in _chunks(len(gradient)):
        x = _stepped(gradient[part], before[part], beta=beta)
        if resting is not None:
            x = np.where(resting[part], before[part], x)
        bound = np.float32(2**-21) * (np.abs(before[part]) + np.abs(x)) + np.float32(1e-37)  # what float32 loses near 0
        wrong += int(np.count_nonzero(~(np.abs(after[part] - x) <= bound)))
    return wrong


def mask(absent: NDArray[np.bool_], sizes: Sequence[int]) -> Words:
    """Return words with 1 for each coordinate of an absent parameter; the parameters have so many coordinates."""
    words = np.zeros(words_for(sum(sizes)) * 8, np.uint8)
    packed = np.packbits(np.repeat(absent, sizes), bitorder="little")
    words[: len(packed)] = packed
    return words.view("<u8").astype(np.uint64, copy=False)


def wrong_absence(gradient: Floats, absent: NDArray[np.bool_], sizes: Sequence[int], *, first: int = 0) -> int:
    """Count the coordinates of parameters on which a rank is absent unduly, or unduly is not: see `hook`.

    The gradient may be a piece, from word `first` on: of a parameter that is cut by its ends, a coordinate that is not
    0 tells that the rank may not be absent, and nothing else is known.
    """
    wrong, end = 0, 0
    for size, gone in zip(sizes, absent.tolist(), strict=True):
        begin, end = end, end + size
        here = gradient[max(0, begin - first * BITS) : max(0, end - first * BITS)]
        silent = not np.count_nonzero(here)
        wrong += len(here) * (not silent if gone else silent and len(here) == size)
    return wrong


def plain_vote(
    comm: Comm, words: Words, *, tie: Tie, absent: NDArray[np.bool_], sizes: Sequence[int],
    abstains: Words | None = None,
) -> Words:  # fmt: skip
    """Return the vote of those present on all ranks' words, (2, W), by adding up single bits. Collective.

    The parameters have so many coordinates; `absent`, bool (parts,), tells on which of them this rank is absent. Its
    bits there are 0. `abstains`, (W,) on all ranks or on none, has 1 where this rank abstains, unless it votes - there.
    The second row has 1 where the result is 0: nobody has voted, or there is a tie and the rule is so.
    """
    P, W = comm.size, len(words)
    present = P - np.sum(comm.allgather(absent), axis=0)
    ballots = P if present.min(initial=P) == P else np.repeat(present, sizes)
    S = -(-W // P)
    received, voting = _shares(comm, words), None
    if abstains is not None:
        voting = _shares(comm, (words | ~abstains) & ~mask(absent, sizes))
    mine = np.zeros((3, S), np.uint64)
    for start in range(0, S, CHUNK // BITS):
        part = slice(start, min(start + CHUNK // BITS, S))
        count = _sum(received[:, part])
        if voting is None:
            cast = _share(ballots, comm.rank * S + part.start, length=len(count))
        else:
            cast = _sum(voting[:, part])
        nobody = np.broadcast_to(cast == 0, count.shape)
        for plane, bits in zip(mine, (2 * count > cast, 2 * count == cast, nobody), strict=True):
            plane[part] = np.packbits(bits, bitorder="little").view(np.uint64)
    every = np.empty((P, 3, S), np.uint64)
    patience.quiet_barrier(comm)
    comm.Allgather(mine, every)
    negative, tied, none = np.ascontiguousarray(every.swapaxes(0, 1)).reshape(3, -1)[:, :W]
    if tie.rule == "random":
        negative = negative | (tied & ~none & counting.coins(tie, W))
    return np.stack([negative, tied if tie.rule == "zero" else none])


def _shares(comm: Comm, words: Words) -> Words:
    """Return this rank's share of all ranks' words, (P, S). Collective."""
    S = -(-len(words) // comm.size)
    sent, received = np.zeros((comm.size, S), np.uint64), np.empty((comm.size, S), np.uint64)
    sent.reshape(-1)[: len(words)] = words
    patience.quiet_barrier(comm)
    comm.Alltoall(sent, received)
    return received


def _sum(rows: Words) -> NDArray[Any]:
    """Return for each coordinate how many of the rows have a 1 there, in a type that holds twice as much."""
    count = np.zeros(BITS * rows.shape[1], np.int16 if len(rows) < 2**14 else np.int64)
    for row in rows:
        count += np.unpackbits(row.view(np.uint8), bitorder="little")
    return count


def _share(ballots: NDArray[np.int64] | int, word: int, *, length: int) -> NDArray[np.int64] | int:
    """Return how many vote on each of so many coordinates from a word on; on what is behind the end, one."""
    if isinstance(ballots, int):
        return ballots
    share = np.ones(length, np.int64)
    known = ballots[word * BITS :][:length]
    share[: len(known)] = known
    return share


def wrong_signs(result: Floats, voted: Words) -> int:
    """Count the coordinates of `result`, float32 (n,), that are not as `plain_vote` says, (2, W)."""
    wrong, planes = 0, voted.view(np.uint8)
    for part in _chunks(len(result)):
        octets = slice(part.start // 8, -(-part.stop // 8))
        truth = np.take(_SIGNS, planes[0, octets], axis=0)
        none = np.unpackbits(planes[1, octets], bitorder="little").reshape(truth.shape)
        truth[none == 1] = 0
        wrong += int(np.count_nonzero(result[part] != truth.reshape(-1)[: part.stop - part.start]))
    return wrong
