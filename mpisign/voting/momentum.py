"""A worker's own momentum, which stays on its rank: flat for the kernels, by parameter for checkpoints."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from .bucket import local_of, owners_of

if TYPE_CHECKING:
    from .bucket import Bucket


class Momentum:
    """The momentum of each parameter, float32 on the device of its gradient, zeros before its first step.

    It lies flat, bucket by bucket, each piece in the memory order of its parameter, as DDP lays out its buckets. What
    is kept is taken over, by logical coordinate, where DDP divides the parameters into buckets anew, or where they
    have moved to another device or memory format. It goes with the parameter, which is held weakly.

    Args:
        revocable: Keep the momentum of before the last step too, so that the step can be taken back: twice the memory,
            and no copy.

    """

    def __init__(self, *, revocable: bool = False) -> None:
        self.revocable = revocable
        self._buckets: dict[int, _Flat] = {}
        self._places: MutableMapping[Tensor, tuple[_Flat, int]] = WeakTensorKeyDictionary()  # by parameter
        # Revocable: the buckets that the step under way has written, and those that the last whole step has.
        self._written: set[_Flat] = set()
        self._turned: set[_Flat] | None = None

    def of(self, bucket: Bucket) -> Tensor:
        """Return the momentum of a bucket, float32 (n,) on its device.

        Raises:
            ValueError: a parameter has another shape than before, or was converted in place while its DDP goes on.

        """
        return self._flat(bucket).copies[0]

    def next_of(self, bucket: Bucket) -> Tensor:
        """Return where its new momentum is to be written, float32 (n,): without `revocable`, what `of` returns."""
        flat = self._flat(bucket)
        if self.revocable:
            self._written.add(flat)
        return flat.copies[-1]

    def turn(self) -> None:
        """Let what was written since the last turn be the momentum. Without `revocable` it is already."""
        if self.revocable:
            self._turned, self._written = self._written, set()
            self._swap(self._turned)

    def rollback(self) -> bool:
        """Take the last step back: all of it (True), or what was written of one that came to no turn (False).

        Raises:
            ValueError: not made with `revocable`, or there is no step to take back, or it is taken back already.

        """
        if not self.revocable:
            raise ValueError(
                "rollback: the momentum of before the step is not kept; make the state with revocable=True"
            )
        if self._written:
            self._written.clear()
            return False
        if self._turned is None:
            raise ValueError("rollback: there is no step to take back")
        self._swap(self._turned)
        self._turned = None
        return True

    @staticmethod
    def _swap(flats: Iterable[_Flat]) -> None:
        for flat in flats:
            flat.copies.reverse()

    def _flat(self, bucket: Bucket) -> _Flat:
        flat = self._buckets.get(bucket.index())
        if flat is None or not flat.fits(bucket):
            flat = self._buckets[bucket.index()] = self._laid_out(bucket)
        return flat

    def _laid_out(self, bucket: Bucket) -> _Flat:
        """Make the flat momentum of a bucket that is new, or lies otherwise than before; take over what is kept."""
        parameters, owners = bucket.parameters(), owners_of(bucket)
        flat = _Flat(parameters, owners, where=bucket.buffer().device, copies=2 if self.revocable else 1)
        flat.buffer = TensorWeakRef(bucket.buffer())
        for k, owner in enumerate(owners):
            if owner in self._places:
                kept, number = self._places[owner]
                _check_shape(f"{k} of bucket {bucket.index()}", now=flat.shapes[k], before=kept.shapes[number])
                turned = self._turned is not None and kept in self._turned
                for copy in range(len(flat.copies)):
                    # Of a bucket that is turned back, both copies; the others have the same in both.
                    flat.view(k, copy).copy_(kept.view(number, copy if turned else 0))
                if turned and self._turned is not None:
                    self._turned.add(flat)
                kept.left = True
            self._places[owner] = flat, k
        return flat

    def state_dict(self, parameters: Iterable[Tensor]) -> list[Tensor | None]:
        """Return a copy on the host of each parameter's momentum, float32, contiguous; None before its first step.

        Each has its parameter's shape, a parameter that `fully_shard` has sharded (a DTensor) that of its local shard.

        Raises:
            ValueError: a model of FSDP shows whole parameters in place of its shards, whose momentum would be left out.

        """
        given = list(parameters)
        places = [self._places.get(parameter) for parameter in given]
        unknown = any(p.requires_grad and place is None for p, place in zip(given, places, strict=True))
        if unknown and any(hasattr(p, "to_local") and all(p is not one for one in given) for p in self._places):
            raise ValueError(
                "momentum: an evaluation has left parameters of the model unsharded, and the momentum is of their "
                "shards: call model.reshard() before"
            )
        return [None if place is None else _on_host(place[0].view(place[1])) for place in places]

    def load_state_dict(self, state: Iterable[Tensor | None], parameters: Iterable[Tensor]) -> None:
        """Replace all momentum by what `state_dict` gave for the same parameters in the same order.

        Raises:
            ValueError: another number of parameters, one of another shape, or values that are not finite; nothing was
                changed.

        """
        kept, owners = list(state), list(parameters)
        if len(kept) != len(owners):
            raise ValueError(f"momentum: was saved for {len(kept)} parameters, here are {len(owners)}")
        locals_ = [local_of(owner) for owner in owners]
        for k, (part, local) in enumerate(zip(kept, locals_, strict=True)):
            if part is not None:
                _check_shape(str(k), now=local.shape, before=part.shape)
                _check_finite(k, part)
        self._buckets.clear()
        self._places.clear()
        self._written, self._turned = set(), None
        for owner, part, local in zip(owners, kept, locals_, strict=True):
            if part is not None:
                flat = _Flat([local], [owner], where=part.device, copies=1)
                flat.view(0).copy_(part.detach())
                self._places[owner] = flat, 0


def check_owner(state: dict[str, Any], rank: int) -> None:
    """Check that what a VoteState has saved was saved by this rank.

    Raises:
        ValueError: it was another.

    """
    if state["rank"] != rank:
        raise ValueError(
            f"load_state_dict: this is the momentum of rank {state['rank']} of {state['ranks']}, and this is rank "
            f"{rank}: each rank has its own, so save one file a rank and load it on the same rank"
        )


class _Flat:
    """The momentum of some parameters, flat, in one copy or two: as it is, and as it was or is going to be."""

    def __init__(
        self, parameters: Sequence[Tensor], owners: Sequence[Tensor], *, where: torch.device, copies: int
    ) -> None:
        sizes = [parameter.numel() for parameter in parameters]
        self.copies = [torch.zeros(sum(sizes), dtype=torch.float32, device=where) for _ in range(copies)]
        self.shapes = [parameter.shape for parameter in parameters]
        self.left = False  # for another bucket, by any of its parameters
        self.buffer: TensorWeakRef | None = None  # of the gradients that it was laid out for
        self._owners = [TensorWeakRef(owner) for owner in owners]
        self._seen = [parameter.stride() for parameter in parameters]
        self._strides = [_strides(parameter) for parameter in parameters]
        self._offsets = [0, *itertools.accumulate(sizes)]

    def fits(self, bucket: Bucket) -> bool:
        """Say whether it is the momentum of these parameters in this order, each as it lies now.

        Raises:
            ValueError: a parameter has been converted in place, and DDP not been made anew.

        """
        buffer, owners = bucket.buffer(), owners_of(bucket)
        flat = self.copies[0]
        if self.left or buffer.device != flat.device or buffer.numel() != flat.numel():
            return False
        if len(owners) != len(self._owners):
            return False
        if any(ref() is not owner for ref, owner in zip(self._owners, owners, strict=True)):
            return False
        if all(p.stride() == seen for p, seen in zip(bucket.parameters(), self._seen, strict=True)):
            return True
        if self.buffer is not None and self.buffer() is buffer:
            # DDP fills it as its parameters lay when it was made, and reads what a hook gives back as they lie now.
            raise ValueError(
                f"bucket: parameters of bucket {bucket.index()} have another memory format than when DDP was made, "
                "which scrambles gradients; wrap the model in DistributedDataParallel anew"
            )
        return False

    def view(self, number: int, copy: int = 0) -> Tensor:
        """Return a parameter's piece in its shape."""
        return self.copies[copy].as_strided(self.shapes[number], self._strides[number], self._offsets[number])


def _strides(parameter: Tensor) -> tuple[int, ...]:
    """Return the strides of a parameter's piece of a bucket: DDP keeps those of one that is dense, and no others."""
    kept = torch.empty_like(parameter, device="meta").stride()  # keeps them where dense, too
    return kept if kept == parameter.stride() else torch.empty(parameter.shape, device="meta").stride()


def _on_host(view: Tensor) -> Tensor:
    return torch.empty(view.shape, dtype=torch.float32, device="cpu").copy_(view)


def _check_shape(name: str, *, now: torch.Size, before: torch.Size) -> None:
    if now != before:
        raise ValueError(f"momentum: parameter {name} has shape {list(now)}, its momentum is of {list(before)}")


def _check_finite(number: int, part: Tensor) -> None:
    faults = int(torch.count_nonzero(~torch.isfinite(part)))
    if faults:
        raise ValueError(
            f"momentum: {faults} saved values of parameter {number} are not finite, which no state writes: the file is "
            "damaged; load an older one"
        )
