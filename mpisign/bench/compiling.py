"""Compiling: all kernels are there before the clock starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..coding.rules import Signum
from ..coding.sizes import planes_for
from ..ranks.torchrun import TorchComm
from ..voting.bucket import HeldBucket
from ..voting.carriers import GroupComm
from ..voting.exchange import EXCHANGES, exchange_class
from ..voting.hook import VoteState
from ..voting.native import merge_function

if TYPE_CHECKING:
    from ..ranks.launch import Comm


def compile_kernels(comm: Comm) -> None:
    """Have all kernels compiled that a vote can need. Collective."""
    where, exchanges = _where(comm)
    for exchange in exchanges:
        for momentum in (0.0, 0.9):
            state = VoteState(where, rule=Signum(momentum), exchange=exchange, tie="random", zeros="positive")
            for vector in (torch.zeros(65), torch.ones(65)):  # without a voter and with all of them
                state.vote_bucket(HeldBucket(0, vector, [vector], True))
            state.close()
    if exchanges == tuple(EXCHANGES):
        merge_function(planes_for(comm.size))


def _where(comm: Comm) -> tuple[Any, tuple[str, ...]]:
    """Return by what to vote, and the exchanges that it can do."""
    if isinstance(comm, TorchComm):
        return GroupComm(None, "gloo"), tuple(name for name in EXCHANGES if not exchange_class(name).counts)
    from mpi4py import MPI

    return MPI.COMM_SELF, tuple(EXCHANGES)
