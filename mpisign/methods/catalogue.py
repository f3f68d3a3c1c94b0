"""The names of all methods: a dense rival's, or a vote's."""

from __future__ import annotations

from typing import NamedTuple

from ..voting.exchange import EXCHANGES
from .rivals import BASELINES


class Vote(NamedTuple):
    """By which of EXCHANGES is voted, and what carries the words: MPI, or a backend of torch.distributed."""

    exchange: str
    backend: str | None = None


# The same algorithm over the rivals' transport tells what is the algorithm's and what the transport's.
VOTES: dict[str, Vote] = {f"vote-{name}": Vote(name) for name in EXCHANGES} | {
    f"vote-{name}-{backend}": Vote(name, backend) for name in ("allgather", "alltoall") for backend in ("gloo", "nccl")
}
METHODS = (*BASELINES, *VOTES)


def needs_nccl(method: str) -> bool:
    """Tell whether a method runs only where NCCL does."""
    return VOTES[method].backend == "nccl" if method in VOTES else BASELINES[method].needs_nccl
