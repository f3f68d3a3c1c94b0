"""Compiling: all kernels are there before the clock starts."""

from __future__ import annotations

import torch
from mpi4py import MPI

from ..coding.sizes import planes_for
from ..voting.bucket import HeldBucket
from ..voting.exchange import EXCHANGES
from ..voting.hook import VoteState
from ..voting.native import merge_function


def compile_kernels() -> None:
    """Have all kernels compiled that a vote can need."""
    vector = torch.zeros(65)
    for exchange in EXCHANGES:
        for momentum in (0.0, 0.9):
            state = VoteState(MPI.COMM_SELF, momentum, exchange=exchange, tie="random")
            state.vote_bucket(HeldBucket(0, vector, [vector], True))
            state.close()
    merge_function(planes_for(MPI.COMM_WORLD.size))
