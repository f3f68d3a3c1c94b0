"""Tensors as they were: to try something out, or to let several begin alike."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

ALIGNED = 64  # bytes: a cache line


class Snapshot:
    """Copies of tensors, with which they can be restored in place. Where they lie on a device, so do the copies.

    All of them lie in one piece of memory, which stays as large as it had to be: to free it and to take it anew in
    each iteration would leave the heap in holes. `in_place_of` is another snapshot, whose memory is taken, for
    there is no time at which both are needed.
    """

    def __init__(self, tensors: Iterable[Tensor] = (), *, in_place_of: Snapshot | None = None) -> None:
        self._tensors: list[Tensor] = []
        self.copies: list[Tensor] = []
        self._memory: list[Tensor] = in_place_of._memory if in_place_of else []  # one, of bytes, or none yet
        self.keep(tensors)

    @torch.no_grad()
    def keep(self, tensors: Iterable[Tensor]) -> None:
        """Copy these tensors as they are now, over the copies of before."""
        self._tensors, self.copies = list(tensors), []
        sizes = [-(-tensor.numel() * tensor.element_size() // ALIGNED) * ALIGNED for tensor in self._tensors]
        if self._tensors and not (self._memory and self._fits(sum(sizes))):
            self._memory[:] = []  # before the larger one is made
            self._memory.append(torch.empty(sum(sizes), dtype=torch.uint8, device=self._tensors[0].device))
        end = 0
        for tensor, size in zip(self._tensors, sizes, strict=True):
            begin, end = end, end + size
            piece = self._memory[0][begin : begin + tensor.numel() * tensor.element_size()]
            self.copies.append(piece.view(tensor.dtype).view(tensor.shape).copy_(tensor))

    def drop(self) -> None:
        """Forget the copies. Their memory is freed on a device alone, whose allocator leaves no holes."""
        self._tensors, self.copies = [], []
        if self._memory and self._memory[0].is_cuda:
            self._memory[:] = []

    def _fits(self, size: int) -> bool:
        memory = self._memory[0]
        return memory.numel() >= size and memory.device == self._tensors[0].device

    @torch.no_grad()
    def restore(self, tensors: Iterable[Tensor] | None = None) -> None:
        """Set the tensors back to what they were; `tensors` are others that have taken their place."""
        for tensor, copy in zip(self._tensors if tensors is None else tensors, self.copies, strict=True):
            tensor.copy_(copy)
