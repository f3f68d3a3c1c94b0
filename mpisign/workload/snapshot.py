"""Tensors as they were: to try something out, or to let several begin alike."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class Snapshot:
    """Copies of tensors, with which they can be restored in place. Where they lie on a device, so do the copies."""

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        self._tensors: list[Tensor] = []
        self.copies: list[Tensor] = []
        self.keep(tensors)

    @torch.no_grad()
    def keep(self, tensors: Iterable[Tensor]) -> None:
        """Copy these tensors as they are now, into the copies of before where they fit."""
        before, self._tensors, self.copies = self.copies, list(tensors), []
        for i, tensor in enumerate(self._tensors):
            fits = i < len(before) and before[i].shape == tensor.shape and before[i].dtype == tensor.dtype
            self.copies.append((before[i] if fits else torch.empty_like(tensor)).copy_(tensor))

    def drop(self) -> None:
        """Free the copies: each is as large as what it is of."""
        self._tensors, self.copies = [], []

    @torch.no_grad()
    def restore(self, tensors: Iterable[Tensor] | None = None) -> None:
        """Set the tensors back to what they were; `tensors` are others that have taken their place."""
        for tensor, copy in zip(self._tensors if tensors is None else tensors, self.copies, strict=True):
            tensor.copy_(copy)
