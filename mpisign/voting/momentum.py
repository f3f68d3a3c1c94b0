"""A worker's own momentum, which stays on its rank: flat for the kernels, by parameter for checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

if TYPE_CHECKING:
    from .bucket import Bucket


class Momentum:
    """The momentum of each parameter, float32 on its device, zeros before its first step.

    It lies flat, bucket by bucket, and each parameter has a view of its part. DDP may divide the parameters into
    buckets anew: what their views hold is taken over.
    """

    def __init__(self) -> None:
        self._buckets: dict[int, tuple[Tensor, Sequence[Tensor]]] = {}
        self._views: MutableMapping[Tensor, Tensor] = WeakTensorKeyDictionary()  # by parameter

    def of(self, bucket: Bucket) -> Tensor:
        """Return the momentum of a bucket, float32 (n,) on its device, to be changed in place."""
        index, parameters = bucket.index(), bucket.parameters()
        if index in self._buckets:
            flat, parts = self._buckets[index]
            views = [self._views.get(parameter) for parameter in parameters]
            if len(views) == len(parts) and all(view is part for view, part in zip(views, parts, strict=True)):
                return flat
        return self._lay_out(index, parameters, bucket.buffer().device)

    def _lay_out(self, index: int, parameters: Sequence[Tensor], where: torch.device) -> Tensor:
        """Make the flat momentum of a bucket that is new, or holds other parameters than before."""
        sizes = [parameter.numel() for parameter in parameters]
        flat = torch.zeros(sum(sizes), device=where)
        parts = torch.split(flat, sizes)
        for parameter, part in zip(parameters, parts, strict=True):
            if parameter in self._views:
                part.copy_(self._views[parameter])
            self._views[parameter] = part
        self._buckets[index] = flat, parts
        return flat

    def state_dict(self, parameters: Iterable[Tensor]) -> list[Tensor | None]:
        """Return a copy on the host of each parameter's momentum, float32 (n,); None before its first step."""
        views = [self._views.get(parameter) for parameter in parameters]
        return [None if view is None else view.cpu().clone() for view in views]

    def load_state_dict(self, state: Iterable[Tensor | None], parameters: Iterable[Tensor]) -> None:
        """Replace all momentum by what `state_dict` gave for the same parameters in the same order."""
        self._buckets.clear()
        self._views.clear()
        for parameter, momentum in zip(parameters, state, strict=True):
            if momentum is not None:
                self._views[parameter] = momentum.detach().to(torch.float32).reshape(-1).clone()
