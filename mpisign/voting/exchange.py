"""Five ways for P ranks to agree on the vote of W words, over any carrier. Words only: no torch, no floats.

An exchange is a plan: it belongs to one carrier and one W, allocates once, and is called once a step. Its input
`words` is the caller's to fill and is left as it was. All ranks get the same bits, the exact majority.

What is sent is booked in `network.traffic`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from ..coding.sizes import BLOCK, blocks_for, planes_for, share_for
from ..coding.ties import Tie, check_tie
from ..ranks.agreement import agree
from ..ranks.clock import Spans
from .carriers import HostCarrier

if TYPE_CHECKING:
    from mpi4py import MPI

    from ..coding.bits import Words
    from .carriers import Buffer, Carrier


class Exchange(ABC):
    """A plan for the vote of `words`, (W,), over a carrier; words are as the carrier keeps them.

    All ranks must make the same exchange with the same arguments: `plan` and `plan_over` make sure.
    """

    name: ClassVar[str]
    counts: ClassVar[bool] = False  # whether it needs a CountingCarrier

    words: Buffer

    def __init__(self, carrier: Any, W: int, tie: str = "positive", seed: int = 0) -> None:
        self.carrier, self.W, self.tie, self.seed = carrier, W, tie, seed
        self.P: int = carrier.size
        self.rank: int = carrier.rank
        self._allocate()

    def vote(self, step: int = 0, spans: Spans | None = None) -> Buffer:
        """Return the vote on `words`: (W,), or (2, W) under the tie rule "zero" (see `counting.majority`).

        Collective. `step` seeds the coins of the tie rule "random". `spans` receives the times of the parts. The
        result is a buffer of this plan, valid until the next vote.
        """
        return self._vote(Tie(self.tie, self.seed, step), spans or Spans())

    @abstractmethod
    def _allocate(self) -> None:
        """Allocate `words` and what a vote needs."""

    @abstractmethod
    def _vote(self, tie: Tie, spans: Spans) -> Buffer: ...

    def close(self) -> None:  # noqa: B027 - most plans have nothing to free
        """Free what this plan holds. Collective."""

    def _result(self, W: int) -> Buffer:
        return self.carrier.zeros(2, W) if self.tie == "zero" else self.carrier.zeros(W)

    def _rows(self, voted: Buffer) -> tuple[Buffer, Buffer]:
        """Split a result into the row of votes and, for the rule "zero", the row of ties."""
        return (voted[0], voted[1]) if self.tie == "zero" else (voted, voted[:0])


class AllGather(Exchange):
    """Every rank gets all words and votes itself. It trusts no other's tally, but grows with P."""

    name = "allgather"

    def _allocate(self) -> None:
        self._all = self.carrier.zeros(self.P, self.W)
        self.words = self._all[self.rank]
        self._voted = self._result(self.W)

    def _vote(self, tie: Tie, spans: Spans) -> Buffer:
        carrier = self.carrier
        with carrier.timed(spans, "all-gather"):
            carrier.complete(self._all)
        with carrier.timed(spans, "vote"):
            carrier.majority(self._all, tie, *self._rows(self._voted))
        return self._voted


class Server(Exchange):
    """Rank 0 gathers all words, votes and broadcasts: the paper's own system, whose server is the bottleneck."""

    name = "server"

    def _allocate(self) -> None:
        self.words = self.carrier.zeros(self.W)
        self._all = self.carrier.zeros(self.P if self.rank == 0 else 0, self.W)
        self._voted = self._result(self.W)

    def _vote(self, tie: Tie, spans: Spans) -> Buffer:
        carrier = self.carrier
        with carrier.timed(spans, "gather"):
            carrier.gather(self.words, self._all)
        if self.rank == 0:
            with carrier.timed(spans, "vote"):
                carrier.majority(self._all, tie, *self._rows(self._voted))
        with carrier.timed(spans, "broadcast"):
            carrier.broadcast(self._voted)
        return self._voted


class AllToAll(Exchange):
    """Each rank is the server of 1/P of the coordinates: all-to-all, vote, all-gather.

    Twice (P - 1) / P bits a coordinate at any P. The vote overwrites this rank's row of what it received, which
    makes that buffer the one that the all-gather completes: two buffers of d / 8 bytes are all it needs.
    """

    name = "alltoall"

    def _allocate(self) -> None:
        S, zero = share_for(self.W, self.P), self.tie == "zero"
        self._sent = self.carrier.zeros(self.P * S)
        self.words = self._sent[: self.W]
        self._received = self.carrier.zeros(self.P, S)
        self._ties = self.carrier.zeros(self.P, S if zero else 0)
        self._both = self.carrier.zeros(2, self.W if zero else 0)

    def _vote(self, tie: Tie, spans: Spans) -> Buffer:
        carrier, received, ties, mine = self.carrier, self._received, self._ties, self.rank
        with carrier.timed(spans, "all-to-all"):
            carrier.all_to_all(self._sent, received)
        with carrier.timed(spans, "vote"):
            carrier.majority(received, tie, received[mine], ties[mine], mine * received.shape[1])
        with carrier.timed(spans, "all-gather"):
            carrier.complete(received)
            if tie.rule == "zero":
                carrier.complete(ties)
        voted = received.reshape(-1)[: self.W]
        if tie.rule != "zero":
            return voted
        self._both[0], self._both[1] = voted, ties.reshape(-1)[: self.W]
        return self._both


class Reduce(Exchange):
    """MPI_Allreduce over bit-sliced counters with our own operation."""

    name = "reduce"
    counts = True

    def _allocate(self) -> None:
        K, G = planes_for(self.P), blocks_for(self.W)
        self._blocks = self.carrier.zeros(G, BLOCK)
        self.words = self._blocks.reshape(-1)[: self.W]
        self._planes = self.carrier.zeros(G, K, BLOCK)
        self._voted = self._result(self.W)
        self._counters = self.carrier.counters(K)

    def _vote(self, tie: Tie, spans: Spans) -> Words:
        from ..coding import counting

        with spans("vote"):  # a counter of one voter: its words, and zeros above
            self._planes[:, 0] = self._blocks
            self._planes[:, 1:] = 0
        with spans("all-reduce"):
            self._counters.sum(self._planes)
        with spans("vote"):
            return counting.decide(self._planes, self.P, self.W, tie, out=self._voted)

    def close(self) -> None:
        self._counters.free()


class Hierarchical(Exchange):
    """Count inside each node, merge the counters among the nodes' first ranks, hand the vote back inside."""

    name = "hierarchical"
    counts = True

    def _allocate(self) -> None:
        self._node, self._leaders = self.carrier.by_node()
        leads = self._node.rank == 0
        K, G = planes_for(self.P), blocks_for(self.W)
        self.words = self.carrier.zeros(self.W)
        self._all = self.carrier.zeros(self._node.size if leads else 0, self.W)
        self._planes = self.carrier.zeros(G if leads else 0, K, BLOCK)
        self._voted = self._result(self.W)
        self._counters = self._leaders.counters(K)

    def _vote(self, tie: Tie, spans: Spans) -> Words:
        from ..coding import counting

        with spans("gather"):
            self._node.gather(self.words, self._all)
        if self._node.rank == 0:
            with spans("vote"):
                counting.count(self._all, self._planes)
            with spans("all-reduce"):
                self._counters.sum(self._planes)
            with spans("vote"):
                counting.decide(self._planes, self.P, self.W, tie, out=self._voted)
        with spans("broadcast"):
            self._node.broadcast(self._voted)
        voted: Words = self._voted
        return voted

    def close(self) -> None:
        self._counters.free()
        self._leaders.close()
        self._node.close()


EXCHANGES: dict[str, type[Exchange]] = {kind.name: kind for kind in (AllGather, Server, AllToAll, Reduce, Hierarchical)}


def exchange_class(name: str, *, counters: bool = True) -> type[Exchange]:
    """Return EXCHANGES[name]; `counters` says whether there is a carrier that sums counters.

    Raises:
        ValueError: there is no such exchange, or it needs counters.

    """
    if name not in EXCHANGES:
        raise ValueError(f"exchange: unknown name {name!r}, choose from {', '.join(EXCHANGES)}")
    if EXCHANGES[name].counts and not counters:
        raise ValueError(f"exchange: {name!r} sums counters, which takes words of the host over MPI")
    return EXCHANGES[name]


def plan_over(carrier: Carrier, W: int, *, exchange: str, tie: str, seed: int) -> Exchange:
    """Return a plan for votes on W words over a carrier. Collective.

    Raises:
        ValueError: on all ranks, if on any: an unknown exchange or tie rule, an exchange that the carrier cannot do,
            or ranks that ask for different votes.

    """

    def check() -> None:
        check_tie(tie)
        exchange_class(exchange, counters=hasattr(carrier, "counters"))

    agree(carrier, (exchange, W, tie, seed), check)
    return EXCHANGES[exchange](carrier, W, tie, seed)


def plan(comm: MPI.Comm, W: int, *, exchange: str = "alltoall", tie: str = "positive", seed: int = 0) -> Exchange:
    """Return a plan for votes on W words over an MPI communicator, to be used again and again. Collective.

    Fill `plan.words`, uint64 (W,), and call `plan.vote(step)`; at the end call `plan.close()`. `seed` and the step
    seed the coins of the tie rule "random".

    Raises:
        ValueError: on all ranks, if on any: an unknown exchange or tie rule, or ranks that ask for different votes.

    """
    return plan_over(HostCarrier(comm), W, exchange=exchange, tie=tie, seed=seed)


def vote(comm: MPI.Comm, words: Words, *, exchange: str = "alltoall", tie: str | Tie = "positive") -> Words:
    """Return the majority of all ranks' `words`, uint64 (W,), on every rank; a plan for one use.

    Collective. The result is uint64 (W,), or (2, W) under the tie rule "zero" (see `counting.majority`).

    Raises:
        ValueError: on all ranks, if on any: an unknown exchange or tie rule, words of another dtype or shape, or ranks
            that ask for different votes.

    """
    import numpy as np

    from ..coding.bits import words_of

    tie = Tie(tie) if isinstance(tie, str) else tie

    def check() -> None:
        words_of("words", words, None)
        check_tie(tie.rule)
        exchange_class(exchange)

    agree(comm, (exchange, np.size(words), tie), check)
    once = EXCHANGES[exchange](HostCarrier(comm), len(words), tie.rule, tie.seed)
    try:
        once.words[:] = words
        voted: Words = once.vote(tie.step).copy()
        return voted
    finally:
        once.close()
