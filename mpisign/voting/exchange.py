"""Five ways for P ranks to agree on the vote of W words, over any carrier. Words only: no torch, no floats.

An exchange is a plan: it belongs to one carrier and one W, allocates once, and is called once a step. Its input
`words` is the caller's to fill and is left as it was. All ranks get the same bits, the exact majority.

A rank may be absent on parts of the words, the parameters of a bucket, as it says in the `roll`; and abstain on single
coordinates. The majority is of those who vote. Either is counted without a new kernel: who votes casts two equal
ballots, and who does not casts one for each side. Where some are absent, the receivers make both out of one. Who
abstains by coordinate sends both, for nobody else knows where; then the result has a second row, which is 1 where
nobody votes, for a count of as many ballots as ranks may be a tie of voters as well.

What is sent is counted in a plan's first vote, and booked beforehand in `network.traffic`.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ..coding.sizes import BLOCK, blocks_for, planes_for, share_for, words_for
from ..coding.ties import Tie, check_tie
from ..ranks.agreement import agree
from ..ranks.clock import Spans
from .carriers import Booked, HostCarrier

if TYPE_CHECKING:
    import numpy as np
    from mpi4py import MPI
    from numpy.typing import NDArray

    from ..coding.bits import Words
    from .carriers import Buffer, Carrier
    from .roll import Roll


class Exchange(ABC):
    """A plan for the vote of `words`, (W,), over a carrier; words are as the carrier keeps them.

    All ranks must make the same exchange with the same arguments: `plan` and `plan_over` make sure.

    Args:
        sizes: Numbers of coordinates of the parts that a rank may be absent on, in order; with none there is no roll.
        abstain: Whether a rank may abstain on single coordinates: then `abstains`, (W,), is the caller's to fill too,
            with 1 where this rank does so, unless it votes - there all the same. It sends twice as much, and the
            result has two rows.
        zeros: Where the plan gets its words, if not from the carrier: called with a shape (see `Room`).

    """

    name: ClassVar[str]
    counts: ClassVar[bool] = False  # whether it needs a CountingCarrier

    words: Buffer
    abstains: Buffer = None
    roll: Roll | None = None

    def __init__(
        self, carrier: Any, W: int, tie: str = "positive", seed: int = 0, *, sizes: Sequence[int] = (),
        abstain: bool = False, zeros: Callable[..., Buffer] | None = None,
    ) -> None:  # fmt: skip
        self.carrier, self.W, self.tie, self.seed = Booked(carrier), W, tie, seed
        self._unbooked, self._moved, self._new = carrier, (0, 0), zeros or carrier.zeros
        self.P: int = carrier.size
        self.rank: int = carrier.rank
        self.resources = contextlib.ExitStack()  # what is freed with the plan
        self._ballots = 2 if abstain else 1  # of each rank, sent one after the other
        self._stays = abstain and tie != "zero"  # whether the second row is that of nobody's votes, not that of ties
        self._two_rows = abstain or tie == "zero"
        self._second: Buffer = None  # where the second one is written, (W,)
        self._absent: NDArray[np.bool_] | None = None  # (P, parts) of this vote, None if all are present
        self._doubled: Buffer = None
        if sizes:
            from .roll import Roll, edges_of

            self.roll, self._edges = Roll(len(sizes), self.P), edges_of(sizes)
        self._allocate()
        if abstain:
            self.abstains = self._new(W)

    def vote(self, step: int = 0, spans: Spans | None = None) -> Buffer:
        """Return the vote on `words`: (W,), or (2, W), whose second row is 1 where the result is 0.

        There is a second row under the tie rule "zero" (see `counting.majority`), and under every rule where a rank may
        abstain on single coordinates: then it has those on which nobody votes. Their bit in the first row is 0. Without
        it, parts on which nobody votes are as tied, and `nobody` tells them.

        Collective. `step` seeds the coins of the tie rule "random". `spans` receives the times of the parts. The
        result is a buffer of this plan, valid until the next vote. As the padding, bits of `words` are 0 where this
        rank is absent.

        Raises:
            ValueError: on all ranks, when the vote is over: it was not the same turn for all, see `Roll.write`.

        """
        if self._second is not None:
            self._write_second()
        self._wait = self.carrier.start_gather(self.roll.mine, self.roll.lines) if self.roll else None
        voted = self._vote(Tie(self.tie, self.seed, step), spans or Spans())
        if self.carrier is not self._unbooked:
            sent, received = self.carrier.moved
            self._moved, self.carrier = (sent, received), self._unbooked  # every other vote moves as much
        if self.roll:
            self.roll.check()
        return voted

    @staticmethod
    def rows(P: int) -> int:
        """Return how many times its words a plan has in memory, at most: on the busiest of P ranks."""
        return 2

    @property
    def moved(self) -> tuple[int, int]:
        """The bytes that this rank sends and receives in a vote, (0, 0) before the first: see `carriers.Booked`."""
        return self._moved

    @property
    def nobody(self) -> NDArray[np.bool_]:
        """On which parts nobody has voted, bool (parts,); in a result of one row, what they have got is a tie's."""
        import numpy as np

        return np.zeros(0, np.bool_) if self.roll is None else np.all(self.roll.absent, axis=0)

    @abstractmethod
    def _allocate(self) -> None:
        """Allocate `words` and what a vote needs."""

    @abstractmethod
    def _vote(self, tie: Tie, spans: Spans) -> Buffer:
        """Vote; `_hear` is to be called behind the first phase."""

    def close(self) -> None:
        """Free what this plan holds, which is not its carrier. Collective."""
        self.resources.close()

    def _result(self, W: int) -> Buffer:
        return self._new(2, W) if self._two_rows else self._new(W)

    def _rows(self, voted: Buffer) -> tuple[Buffer, Buffer]:
        """Split a result into the row of votes and that of what is 0, which may be empty."""
        return (voted[0], voted[1]) if self._two_rows else (voted, voted[:0])

    def _write_second(self) -> None:
        """Write the second ballot: the first one, but for the other side where this rank abstains or is absent."""
        self._second[:] = self.words
        self._second |= self.abstains
        absent = self.roll.absent_here if self.roll else None
        if absent is not None and absent.any():
            self._second |= self._mask(absent)

    def _hear(self) -> None:
        """Wait for the roll."""
        if self._wait is not None and self.roll is not None:
            self._wait()
            self._absent = self.roll.absent if self.roll.some_absent else None

    def _mask(self, chosen: NDArray[np.bool_], first: int = 0, W: int | None = None) -> Buffer:
        """Return 1 at the coordinates of chosen parts, in the words from `first` on."""
        from .roll import mask

        return self.carrier.put(mask(chosen, self._edges, first=first, W=self.W if W is None else W))

    def _majority(self, ballots: Buffer, tie: Tie, voted: Buffer, zeros: Buffer, first: int = 0) -> None:
        """Vote on `ballots`, (1 or 2, P, W) from word `first` on; who is absent is counted once for each side.

        `voted` and `zeros` are the rows of the result; `voted` may be a row of `ballots`.
        """
        B, P, W = ballots.shape
        if self._stays:
            _all_abstain(ballots, zeros)
            self.carrier.majority(ballots.reshape(B * P, W), tie, voted, zeros[:0], first)
            voted &= ~zeros
            return
        if self._absent is not None and B == 1:
            if self._doubled is None:
                self._doubled = self._new(2, P, W)
            self._doubled[:] = ballots
            for row, absent in zip(self._doubled[1], self._absent, strict=True):
                if absent.any():
                    row |= self._mask(absent, first, W)
            B, ballots = 2, self._doubled
        self.carrier.majority(ballots.reshape(B * P, W), tie, voted, zeros, first)

    def _decide(self, planes: Words, tie: Tie, voted: Words) -> None:
        """Vote by the counters of all ballots; who is absent is counted once for each side.

        Where nobody votes the counters cannot tell, so the second row of `voted` has it already.
        """
        from ..coding import counting

        P = self._ballots * self.P
        if self._absent is not None and self._ballots == 1:
            P, planes = 2 * self.P, counting.double(planes)
            counting.merge(self._absentees(self._absent, planes.shape[1]), planes)
        counting.decide(planes, P, self.W, tie, out=voted[0] if self._stays else voted)
        if self._stays:
            voted[0] &= ~voted[1]

    def _absentees(self, absent: NDArray[np.bool_], K: int) -> Words:
        """Return counters of how many are absent on each coordinate."""
        import numpy as np

        G = blocks_for(self.W)
        number, planes = absent.sum(axis=0), np.zeros((G, K, BLOCK), np.uint64)
        for k in range(K):
            planes[:, k] = self._mask((number >> k) % 2 == 1, 0, G * BLOCK).reshape(G, BLOCK)
        return planes


class AllGather(Exchange):
    """Every rank gets all words and votes itself. It trusts no other's tally, but grows with P."""

    name = "allgather"

    @staticmethod
    def rows(P: int) -> int:
        return P + 1

    def _allocate(self) -> None:
        self._all = self._new(self._ballots, self.P, self.W)
        self.words, self._second = _first_and_second(self._all[:, self.rank])
        self._voted = self._result(self.W)

    def _vote(self, tie: Tie, spans: Spans) -> Buffer:
        carrier = self.carrier
        with carrier.timed(spans, "all-gather"):
            for rows in self._all:
                carrier.complete(rows)
            self._hear()
        with carrier.timed(spans, "vote"):
            self._majority(self._all, tie, *self._rows(self._voted))
        return self._voted


class Server(Exchange):
    """Rank 0 gathers all words, votes and broadcasts: the paper's own system, whose server is the bottleneck."""

    name = "server"

    @staticmethod
    def rows(P: int) -> int:
        return P + 1

    def _allocate(self) -> None:
        self._sent = self._new(self._ballots, self.W)
        self.words, self._second = _first_and_second(self._sent)
        self._all = self._new(self._ballots, self.P if self.rank == 0 else 0, self.W)
        self._voted = self._result(self.W)

    def _vote(self, tie: Tie, spans: Spans) -> Buffer:
        carrier = self.carrier
        with carrier.timed(spans, "gather"):
            for ballot, rows in zip(self._sent, self._all, strict=True):
                carrier.gather(ballot, rows)
            self._hear()
        if self.rank == 0:
            with carrier.timed(spans, "vote"):
                self._majority(self._all, tie, *self._rows(self._voted))
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
        S = share_for(self.W, self.P)
        self._sent = self._new(self._ballots, self.P * S)
        self.words, self._second = _first_and_second(self._sent[:, : self.W])
        self._received = self._new(self._ballots, self.P, S)
        self._zeros = self._new(self.P, S if self._two_rows else 0)
        self._both = self._new(2, self.W if self._two_rows else 0)

    def _vote(self, tie: Tie, spans: Spans) -> Buffer:
        carrier, received, zeros, mine = self.carrier, self._received[0], self._zeros, self.rank
        with carrier.timed(spans, "all-to-all"):
            for ballot, rows in zip(self._sent, self._received, strict=True):
                carrier.all_to_all(ballot, rows)
            self._hear()
        with carrier.timed(spans, "vote"):
            self._majority(self._received, tie, received[mine], zeros[mine], mine * received.shape[1])
        with carrier.timed(spans, "all-gather"):
            carrier.complete(received)
            if self._two_rows:
                carrier.complete(zeros)
        voted = received.reshape(-1)[: self.W]
        if not self._two_rows:
            return voted
        self._both[0], self._both[1] = voted, zeros.reshape(-1)[: self.W]
        return self._both


class Reduce(Exchange):
    """MPI_Allreduce over bit-sliced counters with our own operation; a second one tells where nobody votes."""

    name = "reduce"
    counts = True

    @staticmethod
    def rows(P: int) -> int:
        return planes_for(P) + 2

    def _allocate(self) -> None:
        K, G = planes_for(self._ballots * self.P), blocks_for(self.W)
        self._blocks = self._new(self._ballots, G, BLOCK)
        self.words, self._second = _first_and_second(self._blocks.reshape(self._ballots, G * BLOCK)[:, : self.W])
        self._planes = self._new(G, K, BLOCK)
        self._voted = self._result(self.W)
        self._counters = self.carrier.counters(K)

    def _vote(self, tie: Tie, spans: Spans) -> Words:
        with spans("vote"):  # a counter of one voter: its words, and zeros above; that of two equal ones: one plane up
            self._planes[:] = 0
            self._planes[:, self._ballots - 1] = self._blocks[0]
            if self._ballots == 2:  # where the two differ the count is 1
                self._planes[:, 0] = self._blocks[0] ^ self._blocks[1]
            if self._stays:
                self._voted[1] = self.words ^ self._second
        with spans("all-reduce"):
            self._counters.sum(self._planes)
            if self._stays:
                self.carrier.intersect(self._voted[1])
            self._hear()
        with spans("vote"):
            self._decide(self._planes, tie, self._voted)
        voted: Words = self._voted
        return voted


class Hierarchical(Exchange):
    """Count inside each node, merge the counters among the nodes' first ranks, hand the vote back inside."""

    name = "hierarchical"
    counts = True

    @staticmethod
    def rows(P: int) -> int:
        return P + 1

    def _allocate(self) -> None:
        self._node, self._leaders = self.carrier.by_node()
        leads = self._node.rank == 0
        K, G, B = planes_for(self._ballots * self.P), blocks_for(self.W), self._ballots
        self._sent = self._new(B, self.W)
        self.words, self._second = _first_and_second(self._sent)
        self._all = self._new(B, self._node.size if leads else 0, self.W)
        self._planes = self._new(G if leads else 0, K, BLOCK)
        self._voted = self._result(self.W)
        self._counters = self._leaders.counters(K)

    def _vote(self, tie: Tie, spans: Spans) -> Words:
        from ..coding import counting

        with spans("gather"):
            for ballot, rows in zip(self._sent, self._all, strict=True):
                self._node.gather(ballot, rows)
            self._hear()
        if self._node.rank == 0:
            with spans("vote"):
                counting.count(self._all.reshape(self._ballots * self._node.size, self.W), self._planes)
                if self._stays:
                    _all_abstain(self._all, self._voted[1])
            with spans("all-reduce"):
                self._counters.sum(self._planes)
                if self._stays:
                    self._leaders.intersect(self._voted[1])
            with spans("vote"):
                self._decide(self._planes, tie, self._voted)
        with spans("broadcast"):
            self._node.broadcast(self._voted)
        voted: Words = self._voted
        return voted


def _first_and_second(ballots: Buffer) -> tuple[Buffer, Buffer]:
    """Return the rows of `ballots`, (1 or 2, W); None for a second one that is not there."""
    return ballots[0], ballots[1] if len(ballots) == 2 else None


def _all_abstain(ballots: Buffer, nobody: Buffer) -> None:
    """Set `nobody`, (W,), to 1 where the two ballots of each rank, (2, P, W), are one for each side."""
    nobody[:] = ballots[0, 0] ^ ballots[1, 0]
    for first, second in zip(ballots[0, 1:], ballots[1, 1:], strict=True):
        nobody &= first ^ second


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


def plan_over(
    carrier: Carrier, W: int, *, exchange: str, tie: str, seed: int, sizes: Sequence[int] = (), abstain: bool = False,
    zeros: Callable[..., Buffer] | None = None,
) -> Exchange:  # fmt: skip
    """Return a plan for votes on W words over a carrier, which is to outlive it: see `Exchange`. Collective.

    Raises:
        ValueError: on all ranks, if on any: an unknown exchange or tie rule, an exchange that the carrier cannot do,
            sizes that do not fill the words, or ranks that ask for different votes.

    """

    def check() -> None:
        check_tie(tie)
        exchange_class(exchange, counters=hasattr(carrier, "counters"))
        if sizes and words_for(sum(sizes)) != W:
            raise ValueError(f"sizes: {sum(sizes)} coordinates do not fill {W} words")

    agree(carrier, (exchange, W, tie, seed, len(sizes), hash(tuple(sizes)), abstain), check)
    return EXCHANGES[exchange](carrier, W, tie, seed, sizes=sizes, abstain=abstain, zeros=zeros)


def plan(comm: MPI.Comm, W: int, *, exchange: str = "alltoall", tie: str = "positive", seed: int = 0) -> Exchange:
    """Return a plan for votes on W words over an MPI communicator, to be used again and again. Collective.

    Fill `plan.words`, uint64 (W,), and call `plan.vote(step)`; at the end call `plan.close()`. `seed` and the step
    seed the coins of the tie rule "random".

    Raises:
        ValueError: on all ranks, if on any: an unknown exchange or tie rule, or ranks that ask for different votes.

    """
    carrier = HostCarrier(comm)
    made = plan_over(carrier, W, exchange=exchange, tie=tie, seed=seed)
    made.resources.callback(carrier.close)
    return made


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
    with contextlib.closing(HostCarrier(comm)) as carrier:
        once = EXCHANGES[exchange](carrier, len(words), tie.rule, tie.seed)
        once.words[:] = words
        voted: Words = once.vote(tie.step).copy()
        return voted
