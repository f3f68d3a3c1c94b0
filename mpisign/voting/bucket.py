"""What hooks ask of a bucket of gradients, and one that outlives its step of backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..coding import coding


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


def local_of(tensor: Tensor) -> Tensor:
    """Return the shard of a DTensor, not a copy, and any other tensor as it is."""
    with torch.no_grad():
        local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local


def check_type(bucket: Bucket) -> None:
    """Check that the gradient of a bucket can be voted on.

    Raises:
        ValueError: it is sparse, complex, or of another type than coding.FLOATS.

    """
    gradient = bucket.buffer()
    if gradient.layout != torch.strided:
        raise ValueError("bucket: sparse gradients are not voted on: make the embedding with sparse=False")
    if any(parameter.is_complex() for parameter in bucket.parameters()):
        raise ValueError("bucket: a complex gradient has no sign: make the parameter real, of torch.view_as_real(...)")
    if gradient.dtype not in coding.FLOATS:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in coding.FLOATS)
        raise ValueError(f"bucket: gradients must be one of {names}, got {gradient.dtype}: it has no sign to vote on")
