"""What hooks ask of a bucket of gradients, and one that outlives its step of backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Bucket(Protocol):
    """The part of torch.distributed.GradBucket that the hooks use."""

    def index(self) -> int: ...
    def buffer(self) -> Tensor: ...
    def is_last(self) -> bool: ...
    def parameters(self) -> list[Tensor]: ...


@dataclass(frozen=True)
class HeldBucket:
    """A bucket that outlives its step of backward, with a GradBucket's methods.

    `owners` is what the momentum of its parts belongs to, where that is not the parts themselves.
    """

    number: int
    tensor: Tensor
    parts: list[Tensor]
    last: bool
    owners: Sequence[Tensor] | None = None

    def index(self) -> int:
        return self.number

    def buffer(self) -> Tensor:
        return self.tensor

    def parameters(self) -> list[Tensor]:
        return self.parts

    def is_last(self) -> bool:
        return self.last

    @property
    def sizes(self) -> list[int]:
        """How many coordinates each part has."""
        return [part.numel() for part in self.parts]

    def gradients(self) -> list[Tensor]:
        """Return the part of each parameter, in its shape; the parts share the memory of the bucket."""
        pieces = torch.split(self.tensor, self.sizes)
        return [piece.view_as(part) for piece, part in zip(pieces, self.parts, strict=True)]


def owners_of(bucket: Bucket) -> Sequence[Tensor]:
    """Return what the momentum of each part of a bucket belongs to: a GradBucket's parameters themselves."""
    return getattr(bucket, "owners", None) or bucket.parameters()
