"""The mean in bf16 by MPI: each rank makes a share of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..coding.sizes import share_for

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

CHUNK = 2**18  # coordinates that are summed at a time: they stay in the cache


class Shares:
    """The buffers of one of P ranks, for vectors of any length. They are used by one exchange at a time."""

    def __init__(self, P: int, rank: int) -> None:
        self.P, self.rank = P, rank
        self._sent = self._received = torch.empty(0, dtype=torch.bfloat16)
        self._sums = torch.empty(CHUNK)

    def mean(self, comm: Any, vector: Tensor) -> None:
        """Set `vector`, float32 (n,) on the host, to the mean of all ranks' in place. Collective.

        It is rounded to bf16 before it is sent, and the mean is, once: the sum between is float32.
        """
        from mpi4py.MPI import IN_PLACE, INT16_T

        n, P = len(vector), self.P
        S = share_for(n, P)
        if len(self._sent) < P * S:
            self._sent, self._received = torch.empty(2, P * S, dtype=torch.bfloat16)
        sent, received = self._sent[: P * S], self._received[: P * S]
        sent[:n] = vector  # the padding, fewer than P coordinates, may be anything
        counts = [0 if rank == self.rank else S for rank in range(P)]  # its own share need not go anywhere
        where = [rank * S for rank in range(P)]
        comm.Alltoallv([_words(sent), counts, where, INT16_T], [_words(received), counts, where, INT16_T])
        self._reduce(sent.view(P, S)[self.rank], received.view(P, S))
        comm.Allgather(IN_PLACE, _words(sent))
        vector.copy_(sent[:n])

    def _reduce(self, own: Tensor, rows: Tensor) -> None:
        """Set `own`, (S,), to the mean of it and the other ranks' rows, (P, S), of which this rank's is not read."""
        others = [row for rank, row in enumerate(rows) if rank != self.rank]
        for start in range(0, len(own), CHUNK):
            chunk = slice(start, start + CHUNK)
            sums = self._sums[: len(own[chunk])].copy_(own[chunk])
            for row in others:
                sums += row[chunk]
            own[chunk] = sums.div_(self.P)


def _words(tensor: Tensor) -> NDArray[Any]:
    """Return bf16 as what MPI and NumPy know: int16 that share the memory."""
    return tensor.view(torch.int16).numpy()
