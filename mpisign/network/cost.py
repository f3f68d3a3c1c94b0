"""What an exchange costs: the alpha-beta-gamma model, fitted from sweeps, and where two exchanges break even.

    seconds = fixed + steps(P) alpha + bytes(P, d) beta + coordinates(d) gamma + ballots(P, d) delta

alpha is the latency of a message; beta the seconds that a byte takes on the busiest link; gamma those of packing and
unpacking a coordinate; delta those of counting a ballot (one rank's sign of one coordinate); fixed those of every call,
whatever is sent. `bytes` is what `traffic` counts, phase after phase, without the roll, some words; links carry both
ways at once. `steps` is how many messages wait for each other, for long messages:

| exchange | steps | by |
|---|---|---|
| gloo, nccl, fp16, bf16 | 2 (P - 1) | a ring (Patarasuk & Yuan 2009) |
| mpi, vote-reduce | 2 ceil(log2 P) | Rabenseifner's algorithm (Thakur, Rabenseifner & Gropp 2005, section 4) |
| vote-allgather | P - 1 | a ring (Thakur et al.) |
| vote-server | ceil(log2 P) + P - 1 | a binomial gather, then rank 0 sends to each in turn, as its bytes are booked |
| bf16-mpi, vote-alltoall | 2 (P - 1) | pairwise exchange (Thakur et al.), then the ring of allgather |
| vote-hierarchical | the server's in a node, reduce's among nodes | |

Libraries choose other algorithms for short messages and large P (NCCL: trees); there the model is too slow. A sum or a
merge of counters inside a collective counts as part of its wire. A model helps to read measurements (Hoefler & Belli,
SC'15, rule 11) and replaces none; `held_out` returns its errors.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..coding.sizes import BITS, BLOCK, blocks_for, planes_for, share_for, words_for
from .traffic import Traffic, all_reduce, in_turn, phases, reduce_shares

FOLDS = 3  # one size in so many is held out in turn; fewer sizes than this can't be fitted
GBIT = 1e9 / 8  # bytes a second


def _tree(P: int) -> int:
    return 2 * math.ceil(math.log2(P))


def _ring(P: int) -> int:
    return 2 * (P - 1)


def _rooted(P: int) -> int:
    return math.ceil(math.log2(P)) + P - 1


def _counters(W: int, P: int) -> int:
    """Return the bits of a counter of P voters."""
    return planes_for(P) * blocks_for(W) * BLOCK * BITS


class Formula(NamedTuple):
    """What the model says of a method, for P ranks on L nodes.

    An all-reduce has a size, and `shares` if each rank reduces a share by itself; a vote has an exchange, and
    `ballots`: how many its busiest rank counts in W words.
    """

    steps: Callable[[int, int], int]  # of P ranks on L nodes
    size: int = 0  # bytes of a coordinate in an all-reduce
    shares: bool = False
    exchange: str = ""  # a key of traffic.PHASES
    ballots: Callable[[int, int, int], int] = lambda W, P, L: 0

    @property
    def kind(self) -> str:
        """The method's kind, as in a record: "vote" or "rival"."""
        return "vote" if self.exchange else "rival"

    def phases(self, d: int, tie: str, nodes: Sequence[int]) -> list[Traffic]:
        """Return what an exchange of d coordinates sends, phase after phase; `nodes` is each rank's node number."""
        if self.exchange:
            return phases(self.exchange, words_for(d), tie=tie, nodes=nodes)
        if self.shares:
            return [reduce_shares(d, self.size, len(nodes))]
        return [all_reduce(self.size * d, len(nodes))]


def _vote(exchange: str, steps: Callable[[int, int], int], ballots: Callable[[int, int, int], int]) -> Formula:
    return Formula(steps, exchange=exchange, ballots=ballots)


FORMULAS: dict[str, Formula] = {
    "mpi": Formula(lambda P, L: _tree(P), size=4),
    "gloo": Formula(lambda P, L: _ring(P), size=4),
    "nccl": Formula(lambda P, L: _ring(P), size=4),
    "fp16": Formula(lambda P, L: _ring(P), size=2),
    "bf16": Formula(lambda P, L: _ring(P), size=2),
    "bf16-mpi": Formula(lambda P, L: _ring(P), size=2, shares=True),
    "vote-allgather": _vote("allgather", lambda P, L: P - 1, lambda W, P, L: P * W * BITS),
    "vote-server": _vote("server", lambda P, L: _rooted(P), lambda W, P, L: P * W * BITS),
    "vote-alltoall": _vote("alltoall", lambda P, L: _ring(P), lambda W, P, L: P * share_for(W, P) * BITS),
    "vote-reduce": _vote("reduce", lambda P, L: _tree(P), lambda W, P, L: _counters(W, P)),
    "vote-hierarchical": _vote(
        "hierarchical",
        lambda P, L: _rooted(-(-P // L)) + _tree(L),
        lambda W, P, L: -(-P // L) * W * BITS + _counters(W, P),
    ),
}
FP32 = tuple(name for name, formula in FORMULAS.items() if formula.size == 4)
MODELLED_VOTES = tuple(name for name, formula in FORMULAS.items() if formula.kind == "vote")


class Terms(NamedTuple):
    """What an exchange takes of each term of the model."""

    steps: int
    bytes: int
    coordinates: int
    ballots: int


class Rates(NamedTuple):
    """Seconds a step, a byte, a coordinate, a ballot, and a call."""

    alpha: float
    beta: float
    gamma: float = 0.0
    delta: float = 0.0
    fixed: float = 0.0


class Point(NamedTuple):
    """A measured exchange of d coordinates among P ranks: medians of the whole, of pack and unpack, of the vote."""

    method: str
    P: int
    d: int
    terms: Terms
    seconds: float
    coding_s: float
    vote_s: float


class Errors(NamedTuple):
    """Relative errors of points that the fit did not see: of other sizes, of other P."""

    sizes: list[float]
    ranks: list[float]


class Curve(NamedTuple):
    """Seconds over bandwidth: fixed_s + bytes / bandwidth, in bytes a second."""

    fixed_s: float
    bytes: int

    def seconds(self, bandwidth: float, hidden_s: float = 0.0) -> float:
        """Return the seconds that nothing hides; `hidden_s` of them go on behind the backward pass."""
        return max(self.fixed_s + self.bytes / bandwidth - hidden_s, 0.0)


def check(method: str) -> None:
    """Raise a ValueError that lists FORMULAS if `method` is not one of them."""
    if method not in FORMULAS:
        raise ValueError(f"method: the model knows no {method!r}, choose from {', '.join(FORMULAS)}")


def terms(method: str, P: int, *, d: int, nodes: int = 1, tie: str = "positive") -> Terms:
    """Return what an exchange of d coordinates takes among P ranks on so many nodes, filled one after the other.

    Raises:
        ValueError: an unknown method, or no such ranks, nodes or coordinates.

    """
    check(method)
    if not (1 <= nodes <= P and d >= 0):
        raise ValueError(f"terms: no {P} ranks on {nodes} nodes exchange {d} coordinates")
    formula, places = FORMULAS[method], [rank * nodes // P for rank in range(P)]
    coded = d if formula.kind == "vote" else 0
    sent = in_turn(formula.phases(d, tie, places))
    return Terms(formula.steps(P, nodes), sent, coded, formula.ballots(words_for(d), P, nodes))


def seconds(taken: Terms, rates: Rates) -> float:
    """Return the seconds that the model predicts."""
    return rates.fixed + sum(amount * rate for amount, rate in zip(taken, rates[:4], strict=True))


def by_method(points: Iterable[Point]) -> dict[str, list[Point]]:
    """Return the points of each method, in the order of FORMULAS."""
    groups: dict[str, list[Point]] = {name: [] for name in FORMULAS}
    for point in points:
        groups[point.method].append(point)
    return {name: group for name, group in groups.items() if group}


def fit(points: Sequence[Point]) -> Rates:
    """Return the rates that fit the points of one method with the least squares of relative error, none below 0.

    Raises:
        ValueError: they are of fewer than FOLDS sizes.

    """
    sizes = {point.d for point in points}
    if len(sizes) < FOLDS:
        name = points[0].method if points else "fit"
        raise ValueError(f"{name}: too few sizes for a fit: {len(sizes)}, and {FOLDS} are the least")
    return _fit(points)


def _fit(points: Sequence[Point]) -> Rates:
    whole, coding, vote = (np.array([point[i] for point in points]) for i in (4, 5, 6))
    amounts = np.array([point.terms for point in points], float)
    calls = np.ones(len(points))
    wire = non_negative(amounts[:, :2], whole - coding - vote, whole)
    (packing, gamma), (counting, delta) = (
        non_negative(np.stack([calls, amounts[:, i]], axis=1), part, whole) for i, part in ((2, coding), (3, vote))
    )
    return Rates(wire[0], wire[1], gamma, delta, packing + counting)


def non_negative(A: NDArray[np.float64], b: NDArray[np.float64], unit: NDArray[np.float64]) -> list[float]:
    """Return the x >= 0 with the least |(A x - b) / unit|; A has few columns.

    The best x solves the plain least squares of those columns where it is above 0, so all choices of columns are tried.
    """
    A, b = A / unit[:, None], b / unit
    scale = np.linalg.norm(A, axis=0)
    used = np.flatnonzero(scale)
    best, least = np.zeros(A.shape[1]), float(b @ b)
    for columns in (list(c) for k in range(len(used)) for c in itertools.combinations(used, k + 1)):
        x = np.linalg.lstsq(A[:, columns] / scale[columns], b, rcond=None)[0] / scale[columns]
        left = A[:, columns] @ x - b
        if (x >= 0).all() and left @ left < least:
            best, least = np.zeros(A.shape[1]), float(left @ left)
            best[columns] = x
    return [float(rate) for rate in best]


def held_out(points: Sequence[Point]) -> Errors:
    """Return the errors of the model of one method where it was not fitted.

    One size in FOLDS is left out, in each of FOLDS fits, so that each size is predicted once; and each P in turn, if
    there are several.
    """
    sizes = sorted({point.d for point in points})
    ranks = sorted({point.P for point in points})
    by_size = [set(sizes[fold::FOLDS]) for fold in range(FOLDS)]
    return Errors(
        [error for fold in by_size for error in _errors(points, lambda point, fold=fold: point.d in fold)],  # type: ignore[misc]
        [error for P in ranks if ranks[1:] for error in _errors(points, lambda point, P=P: point.P == P)],  # type: ignore[misc]
    )


def _errors(points: Sequence[Point], out: Callable[[Point], bool]) -> list[float]:
    """Return the relative errors of the points that are `out`, of a fit to the others."""
    rates = _fit([point for point in points if not out(point)])
    return [abs(seconds(point.terms, rates) / point.seconds - 1) for point in points if out(point)]


def curve(method: str, P: int, *, d: int, rates: Rates, latency: float | None = None) -> Curve:
    """Return the exchange of d coordinates among P hosts over another wire, of open bandwidth.

    `latency` is that of a message in seconds, None the fitted one. An all-reduce takes the fewest steps that any
    algorithm of as many bytes takes, whichever it was fitted with, as libraries change theirs with P.
    """
    taken = terms(method, P, d=d, nodes=P)
    if FORMULAS[method].kind == "rival":
        taken = taken._replace(steps=_tree(P))
    elsewhere = rates._replace(beta=0.0, alpha=rates.alpha if latency is None else latency)
    return Curve(seconds(taken, elsewhere), taken.bytes)


def break_even(votes: Sequence[Curve], rivals: Sequence[Curve], *, hidden_s: float = 0.0) -> float:
    """Return the bandwidth, in bytes a second, up to which the fastest vote is faster than the fastest rival.

    It is 0 if the vote does not pay even on the slowest wire, and infinite if it does on every one.
    """

    def pays(bandwidth: float) -> bool:
        vote, rival = (min(c.seconds(bandwidth, hidden_s) for c in curves) for curves in (votes, rivals))
        return vote < rival

    crossings = {
        (rival.bytes - vote.bytes) / (vote.fixed_s - rival.fixed_s)
        for vote, rival in itertools.product(votes, rivals)
        if vote.fixed_s != rival.fixed_s
    }
    crossings |= {c.bytes / (hidden_s - c.fixed_s) for c in (*votes, *rivals) if hidden_s > c.fixed_s}
    edges = sorted(crossing for crossing in crossings if crossing > 0)
    for low, high in itertools.pairwise([0.0, *edges]):
        if not pays((low + high) / 2):
            return low
    last = edges[-1] if edges else 0.0
    return math.inf if pays(2 * last + 1) else last
