"""Five ways for P ranks to agree on the vote of W words. Words only: no torch, no floats.

An exchange is a plan: it belongs to one communicator and one W, allocates once, and is called once a step. Its
input `words` is the caller's to fill and is left as it was. All ranks get the same bits, the exact majority.

What is sent is booked in `network.traffic`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..coding import counting
from ..coding.bits import Words, words_of
from ..coding.sizes import BLOCK, blocks_for, planes_for, share_for
from ..coding.ties import Tie, check_tie
from ..ranks import nodes
from ..ranks.agreement import agree
from ..ranks.clock import Spans
from .native import CounterSum

if TYPE_CHECKING:
    from mpi4py import MPI


def host_zeros(shape: int | tuple[int, ...]) -> Words:
    """Return words of the host, all 0."""
    return np.zeros(shape, np.uint64)


class Exchange(ABC):
    """A plan for the vote of `words`, uint64 (W,), over `comm`.

    Collective. All ranks must ask for the same exchange, W and tie rule; else all raise a ValueError. `zeros` makes
    the buffers, of a shape.
    """

    name: ClassVar[str]

    def __init__(
        self, comm: MPI.Comm, W: int, tie: str = "positive", seed: int = 0,
        zeros: Callable[[int | tuple[int, ...]], Words] = host_zeros,
    ) -> None:  # fmt: skip
        agree(comm, (self.name, W, tie, seed), lambda: check_tie(tie))
        self.comm, self.W, self.tie, self.seed = comm, W, tie, seed
        self.P, self.rank, self._zeros = comm.size, comm.rank, zeros
        self.words: Words = zeros(W)
        self._plan()

    def vote(self, step: int = 0, spans: Spans | None = None) -> Words:
        """Return the vote on `words`: uint64 (W,), or (2, W) under the tie rule "zero" (see votes.majority).

        Collective. `step` seeds the coins of the tie rule "random". The result is a buffer of this plan, valid until
        the next vote.
        """
        return self._vote(Tie(self.tie, self.seed, step), spans or Spans())

    @abstractmethod
    def _plan(self) -> None:
        """Allocate what a vote needs."""

    @abstractmethod
    def _vote(self, tie: Tie, spans: Spans) -> Words: ...

    def close(self) -> None:  # noqa: B027 - most plans have nothing to free
        """Free the MPI handles of this plan. Collective."""

    def _result(self) -> Words:
        return self._zeros(counting.voted_shape(self.W, self.tie))


class AllGather(Exchange):
    """Every rank gets all words and votes itself. It trusts no other's tally, but grows with P."""

    name = "allgather"

    def _plan(self) -> None:
        self._all = self._zeros((self.P, self.W))
        self._voted = self._result()

    def _vote(self, tie: Tie, spans: Spans) -> Words:
        with spans("all-gather"):
            self.comm.Allgather(self.words, self._all)
        with spans("vote"):
            return counting.majority(self._all, tie, out=self._voted)


class Server(Exchange):
    """Rank 0 gathers all words, votes and broadcasts: the paper's own system, whose server is the bottleneck."""

    name = "server"

    def _plan(self) -> None:
        self._all = self._zeros((self.P if self.rank == 0 else 0, self.W))
        self._voted = self._result()

    def _vote(self, tie: Tie, spans: Spans) -> Words:
        with spans("gather"):
            self.comm.Gather(self.words, self._all if self.rank == 0 else None, root=0)
        if self.rank == 0:
            with spans("vote"):
                counting.majority(self._all, tie, out=self._voted)
        with spans("broadcast"):
            self.comm.Bcast(self._voted, root=0)
        return self._voted


class AllToAll(Exchange):
    """Each rank is the server of 1/P of the coordinates: all-to-all, vote, all-gather.

    Twice (P - 1) / P bits a coordinate at any P. The vote overwrites this rank's row of what it received, which
    makes that buffer the one that the all-gather completes: two buffers of d / 8 bytes are all it needs.
    """

    name = "alltoall"

    def _plan(self) -> None:
        S = share_for(self.W, self.P)
        self._sent = self._zeros(self.P * S)
        self.words = self._sent[: self.W]
        self._received = self._zeros((self.P, S))
        self._ties = self._zeros((self.P, S if self.tie == "zero" else 0))

    def _vote(self, tie: Tie, spans: Spans) -> Words:
        received, ties, mine = self._received, self._ties, self.rank
        with spans("all-to-all"):
            self.comm.Alltoall(self._sent, received)
        with spans("vote"):
            counting.vote_into(received, tie, received[mine], ties[mine], mine * received.shape[1])
        with spans("all-gather"):
            self._gather(received)
            if tie.rule == "zero":
                self._gather(ties)
        voted = received.reshape(-1)[: self.W]
        return np.stack([voted, ties.reshape(-1)[: self.W]]) if tie.rule == "zero" else voted

    def _gather(self, rows: Words) -> None:
        from mpi4py import MPI

        self.comm.Allgather(MPI.IN_PLACE, rows)


class Reduce(Exchange):
    """MPI_Allreduce over bit-sliced counters with our own operation."""

    name = "reduce"

    def _plan(self) -> None:
        K, G = planes_for(self.P), blocks_for(self.W)
        self._blocks = self._zeros((G, BLOCK))
        self.words = self._blocks.reshape(-1)[: self.W]
        self._planes = self._zeros((G, K, BLOCK))
        self._voted = self._result()
        self._sum = CounterSum(K)

    def _vote(self, tie: Tie, spans: Spans) -> Words:
        with spans("vote"):  # a counter of one voter: its words, and zeros above
            self._planes[:, 0] = self._blocks
            self._planes[:, 1:] = 0
        with spans("all-reduce"):
            _sum_counters(self.comm, self._planes, self._sum)
        with spans("vote"):
            return counting.decide(self._planes, self.P, self.W, tie, out=self._voted)

    def close(self) -> None:
        self._sum.free()


def _sum_counters(comm: MPI.Comm, planes: Words, total: CounterSum) -> None:
    from mpi4py import MPI

    comm.Allreduce(MPI.IN_PLACE, [planes, len(planes), total.datatype], total.op)


class Hierarchical(Exchange):
    """Count inside each node, merge the counters among the nodes' first ranks, hand the vote back inside."""

    name = "hierarchical"

    def _plan(self) -> None:
        self._node = nodes.split_by_node(self.comm)
        leads = self._node.rank == 0
        self._leaders = self.comm.Split(0 if leads else 1, self.rank)
        K, G = planes_for(self.P), blocks_for(self.W)
        self._all = self._zeros((self._node.size if leads else 0, self.W))
        self._planes = self._zeros((G if leads else 0, K, BLOCK))
        self._voted = self._result()
        self._sum = CounterSum(K)

    def _vote(self, tie: Tie, spans: Spans) -> Words:
        leads = self._node.rank == 0
        with spans("gather"):
            self._node.Gather(self.words, self._all if leads else None, root=0)
        if leads:
            with spans("vote"):
                counting.count(self._all, self._planes)
            with spans("all-reduce"):
                _sum_counters(self._leaders, self._planes, self._sum)
            with spans("vote"):
                counting.decide(self._planes, self.P, self.W, tie, out=self._voted)
        with spans("broadcast"):
            self._node.Bcast(self._voted, root=0)
        return self._voted

    def close(self) -> None:
        self._sum.free()
        self._leaders.Free()
        self._node.Free()


EXCHANGES: dict[str, type[Exchange]] = {plan.name: plan for plan in (AllGather, Server, AllToAll, Reduce, Hierarchical)}


def exchange_class(name: str) -> type[Exchange]:
    """Return EXCHANGES[name], or raise a ValueError that lists the names."""
    if name not in EXCHANGES:
        raise ValueError(f"exchange: unknown name {name!r}, choose from {', '.join(EXCHANGES)}")
    return EXCHANGES[name]


def vote(comm: MPI.Comm, words: Words, exchange: str = "alltoall", tie: str | Tie = "positive") -> Words:
    """Return the majority of all ranks' `words`, uint64 (W,), on every rank; a plan for one use.

    Collective. The result is uint64 (W,), or (2, W) under the tie rule "zero" (see votes.majority).

    Raises:
        ValueError: an unknown exchange or tie rule, or words that are not the same W on all ranks.

    """
    tie = Tie(tie) if isinstance(tie, str) else tie

    def check() -> None:
        words_of("words", words, None)
        check_tie(tie.rule)
        exchange_class(exchange)

    agree(comm, (exchange, np.size(words), tie), check)
    plan = EXCHANGES[exchange](comm, len(words), tie.rule, tie.seed)
    try:
        plan.words[:] = words
        return plan.vote(tie.step).copy()
    finally:
        plan.close()
