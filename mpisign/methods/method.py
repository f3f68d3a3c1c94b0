"""A method's record, and what a method can do when it is ready to exchange. Needs neither torch nor mpi4py."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ..ranks.clock import Spans
from ..voting.room import Room

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from ..network.traffic import Traffic
    from ..ranks.launch import Comm
    from ..voting.adversary import Traitor
    from ..voting.bucket import Bucket

Hook = Callable[[Any, Any], "torch.futures.Future[Tensor]"]
Shapes = Sequence[tuple[int, ...]]  # of the tensors of a bucket
# A bucket's number, the words that were sent, and on which parameters the rank is absent.
See = Callable[[int, "Tensor", "NDArray[np.bool_]"], None]

Kind = Literal["ceiling", "rival", "vote"]
LARGEST = 3.4028234663852886e38  # float32's, and near to bfloat16's
MPI, NCCL, MATRICES = "mpi", "nccl", "matrices"  # what a method may need


class Standard(NamedTuple):
    """What the result of a method is held to."""

    of: Literal["nothing", "projection", "mean", "vote"]
    roundoff: float = 0.0  # of a mean's arithmetic, relative
    underflow: float = 0.0  # what an operation of a mean may lose near 0, absolute
    largest: float = LARGEST  # number of a mean's arithmetic: beyond, it may be infinite
    rank: int = 0  # of the projection of a matrix


class Buffers(NamedTuple):
    """The bytes that an exchange takes on a rank, beside gradient and momentum.

    In what is `shared` the methods of a kind take turns: votes in a `Room`, rivals in what they have freed again. What
    a method keeps is its `own`.
    """

    shared: int = 0
    own: int = 0


@dataclass(frozen=True)
class Terms:
    """On what terms the methods of a run exchange: the same on all ranks, but for `adversary`, `spans` and `room`."""

    momentum: float = 0.9  # each worker's, before the sign
    tie: str = "positive"
    seed: int = 0
    adversary: str | None = None  # what this rank sends instead of its votes and gradients; None: it is honest
    spans: Spans = field(default_factory=Spans)  # collects the times of pack, vote, unpack and each collective
    takes_device_memory: bool = False  # MPI does
    room: Room = field(default_factory=Room)  # the memory of votes, which take turns


class Ready:
    """A method that is ready on this rank: call it with a bucket, and it exchanges.

    `hook` is a communication hook of DistributedDataParallel, `state` what it gets. The functions below steer an
    exchange; here they do what a dense method needs. `ready` fills in `method` and `traitor`.

    A hook that only sums has the `divisor` P: what it gets must have been divided by that. DDP without a hook does so
    while it copies a gradient into its bucket, at no cost; here the loss is divided, or the gradient before the clock.
    """

    times_itself = False  # adds the parts of an exchange to Terms.spans
    method: Method
    traitor: Traitor | None = None  # whose gradients this rank sends, if it lies

    def __init__(self, hook: Hook, state: Any = None, *, divisor: int = 1) -> None:
        self.hook, self.state, self.divisor = hook, state, divisor

    def __call__(self, bucket: Any) -> torch.futures.Future[Tensor]:
        return self.hook(self.state, bucket)

    def set_schedule(self, schedule: str) -> None:
        """Exchange during backward, beside it ("overlap"), or when it is done ("serial")."""

    def set_step(self, step: int) -> None:
        """Make the next exchange the one of that step: coins and traitors depend on it."""

    def lie(self, gradient: Tensor, *, bucket: int, step: int) -> bool:
        """Replace the gradient of a bucket, in place, if this rank is a traitor; tell whether it is.

        A vote's hook does this to its words by itself, so here it does nothing then.
        """
        if self.traitor is None:
            return False
        from ..coding.coding import on_host

        with on_host(gradient) as host:
            host.mul_(self.divisor)  # it remembers gradients, and others divide them by something else
            self.traitor.lie_in_gradient(host.numpy(), bucket, step=step)
            host.div_(self.divisor)
        return True

    def momentum_of(self, bucket: Bucket) -> Tensor | None:
        """Return the momentum of a bucket, which the exchange changes; None where there is none."""
        return None

    def kept_of(self, bucket: Bucket) -> Tensor | None:
        """Return what was kept back of this rank's gradients of a bucket; an exchange makes a new tensor of that."""
        return None

    def observe(self, see: See | None) -> None:
        """Call `see` when the words of a bucket are sent, perhaps in another thread; None ends that."""


@dataclass(frozen=True)
class Method:
    """What is known of a method without running it."""

    name: str
    kind: Kind  # "ceiling" sends nothing, a "rival" averages gradients, a "vote" votes on their signs
    summary: str
    make: Callable[[Comm, Terms, contextlib.ExitStack], Ready]  # collective; the stack frees what it holds
    traffic: Callable[[Shapes, str, Sequence[int]], Traffic]  # shapes of a bucket, tie rule, each rank's node number
    truth: Standard
    needs: frozenset[str] = frozenset()  # of MPI, NCCL and MATRICES
    unasked: str = ""  # why it is left out on CPUs unless it is asked for
    keeps_state: bool = False  # between steps, which checkpoints do not have
    buffers: Callable[[int, int], Buffers] = lambda n, P: Buffers()  # of n coordinates, among P ranks, at most
