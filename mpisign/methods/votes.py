"""The votes: each exchange over MPI, and those that have a form for it over a backend of torch.distributed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..coding.rules import Signum
from ..coding.sizes import words_for
from ..voting.exchange import EXCHANGES
from .method import MPI, NCCL, Buffers, Method, Ready, See, Shapes, Standard, Terms

if TYPE_CHECKING:
    from torch import Tensor

    from ..network.traffic import Traffic
    from ..ranks.launch import Comm
    from ..voting.bucket import Bucket
    from ..voting.hook import VoteState


class ReadyVote(Ready):
    """A vote that is ready; its state is a VoteState, which traces and lies by itself."""

    state: VoteState
    times_itself = True

    def set_schedule(self, schedule: str) -> None:
        self.state.schedule = schedule

    def set_step(self, step: int) -> None:
        self.state.steps = step

    def lie(self, gradient: Tensor, *, bucket: int, step: int) -> bool:
        return False

    def momentum_of(self, bucket: Bucket) -> Tensor | None:
        return self.state.momentum_of(bucket) if self.state.rule.has_momentum else None

    def observe(self, see: See | None) -> None:
        self.state.observer = see


def _vote(exchange: str, backend: str | None) -> Callable[[Comm, Terms, contextlib.ExitStack], ReadyVote]:
    """Return the maker of a vote by one of EXCHANGES, over MPI or a backend of torch.distributed."""

    def make(comm: Comm, terms: Terms, resources: contextlib.ExitStack) -> ReadyVote:
        from ..voting.carriers import GroupComm
        from ..voting.hook import VoteState, vote_hook

        carrier: Any = GroupComm(None, backend) if backend else comm
        state = VoteState(
            carrier, rule=Signum(terms.momentum), exchange=exchange, tie=terms.tie, zeros="positive",
            adversary=terms.adversary, seed=terms.seed, spans=terms.spans,
            takes_device_memory=terms.takes_device_memory,
        )  # fmt: skip
        state.share_words(terms.room)
        resources.callback(state.close)
        return ReadyVote(vote_hook, state)

    return make


def _voted(exchange: str) -> Callable[..., Traffic]:
    """Book a vote on one bit a coordinate, and one a parameter."""

    def traffic(shapes: Shapes, tie: str, nodes: Sequence[int]) -> Traffic:
        from ..network.traffic import vote

        return vote(exchange, words_for(sum(map(math.prod, shapes))), tie=tie, nodes=nodes, parts=len(shapes))

    return traffic


def _method(exchange: str, backend: str | None = None) -> Method:
    name, by = (f"vote-{exchange}-{backend}", backend) if backend else (f"vote-{exchange}", "MPI")
    needs = frozenset({MPI} if backend is None else {NCCL} if backend == NCCL else ())
    return Method(name, "vote", f"majority vote by the exchange {exchange}, over {by}", _vote(exchange, backend),
                  _voted(exchange), Standard("vote"), needs,
                  buffers=lambda n, P: Buffers(shared=EXCHANGES[exchange].rows(P) * n // 8))  # fmt: skip


# The same algorithm over the rivals' transport tells what is the algorithm's and what the transport's.
VOTES = (
    *(_method(exchange) for exchange in EXCHANGES),
    *(_method(exchange, backend) for exchange in ("allgather", "alltoall") for backend in ("gloo", "nccl")),
)
