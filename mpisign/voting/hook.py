"""The vote as a communication hook of DistributedDataParallel.

With the voted signs as the "gradient", `torch.optim.SGD(lr, weight_decay=w)` is the paper's update
x <- x - lr * (sign(vote) + w * x); the momentum is each worker's own, before the sign, and lives in VoteState.
"""

# No postponed annotations here: DDP looks at those of its hooks.
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed import GradBucket  # type: ignore[attr-defined]

from ..coding import bits, coding, rules, ties
from ..coding.rules import Rule, Signum
from ..ranks import patience
from ..ranks.agreement import agree
from ..ranks.clock import Spans, timed
from ..ranks.machine import check_threads
from . import signing
from .adversary import Traitor, check_adversary
from .bucket import Bucket, check_type
from .carriers import GroupComm
from .exchange import exchange_class
from .guard import Guard
from .ledger import Ledger, Statistics, told
from .momentum import Momentum, check_owner
from .plans import Plans
from .roll import edges_of, mask, pieces
from .room import Room
from .schedule import Scheduler, check_schedule
from .tensors import Plan
from .where import Comm, comm_of, members_of

if TYPE_CHECKING:
    from mpi4py import MPI
    from torch.distributed import ProcessGroup

SIGNUM = Signum()
ZEROS = ("positive", "random", "abstain")
NONFINITE = ("count", "raise")
_ANEW = "make a new VoteState, and give it what state_dict() of the first one returned"


class VoteState:
    """What a worker keeps between steps: its momentum, its exchange plans, and how it votes.

    Args:
        where: The ranks that DDP averages over: a process group of torch.distributed (None: the default group), or an
            mpi4py communicator. It is duplicated (collective).
        rule: What this rank signs, made by Signum, SignSGD, Lion, Noisy or Stochastic.
        exchange: One of EXCHANGES.
        tie: One of TIES: what becomes of a coordinate for which half of the ranks vote.
        zeros: How a rank votes where what it signs is exactly 0, one of ZEROS: "random" (a coin of this rank,
            coordinate and step: measured best at one bit, docs/experiments.md), "positive" (+1, as the paper's code),
            "abstain" (not at all; two bits a coordinate go out and come back instead of one).
        nonfinite: What becomes of a gradient that is not finite: it counts as 0 in any case, and statistics() tells;
            "raise" ends the training, on all ranks.
        adversary: What this rank sends instead of its signs, one of ADVERSARIES; None is honest.
        seed: Of the coins of ties, zeros and adversaries, the same on all ranks.
        spans: Collects the times of pack, vote, unpack and each collective.
        schedule: One of SCHEDULES; may be changed between steps. "overlap" votes on each bucket in a thread while
            backward goes on, "serial" (the paper's) on all of them when backward is done. Both give the same bits.
        takes_device_memory: Whether MPI is CUDA-aware. A wrong claim ends in a segmentation fault (see `place`).
        guard: Refuse what would silently spoil the training (see `guard`).
        revocable: Keep the momentum of before the last step too, 4 bytes a coordinate, so that `rollback` can take the
            step back.

    A rank whose gradient of a parameter is exactly 0 everywhere, as DDP hands out where there is none, abstains on that
    parameter, and its momentum of it rests. Where nobody votes the result is 0, under every tie rule.

    Raises:
        ValueError: on all ranks, if on any: an unknown rule, exchange, tie rule, adversary, schedule or the like, an
            exchange that a process group cannot do, too low a thread level of MPI, or ranks that ask for different
            votes.

    """

    def __init__(
        self, where: "MPI.Comm | ProcessGroup | Comm | None" = None, *, rule: Rule = SIGNUM,
        exchange: str = "alltoall", tie: str = "positive", zeros: str = "random", nonfinite: str = "count",
        adversary: str | None = None, seed: int = 0, spans: Spans | None = None, schedule: str = "overlap",
        takes_device_memory: bool = False, guard: bool = True, revocable: bool = False,
    ) -> None:  # fmt: skip
        comm = comm_of(where)

        def check() -> None:
            exchange_class(exchange, counters=not isinstance(comm, GroupComm))
            ties.check_tie(tie)
            rules.check_rule(rule)
            check_adversary(adversary)
            check_schedule(schedule)
            _choose("zeros", zeros, ZEROS)
            _choose("nonfinite", nonfinite, NONFINITE)
            if not isinstance(comm, GroupComm):
                check_threads()

        agree(comm, (exchange, tie, rule, zeros, nonfinite, seed), check)
        # Tuned: what the caller has chosen; `schedule` and `observer` may be changed between steps.
        self.rule, self.tie, self.zeros, self.nonfinite = rule, tie, zeros, nonfinite
        self.exchange, self.seed, self.schedule, self.revocable = exchange, seed, schedule, revocable
        self.traitor = None if adversary is None else Traitor(adversary, seed, rank=comm.rank)
        # Called with a bucket's number, the words that this rank really sends, int64 (W,), and which of its parameters
        # it abstains on, bool (parts,), before they are sent.
        self.observer: Callable[[int, Tensor, NDArray[np.bool_]], None] | None = None
        # Kept from step to step.
        self.steps = 0
        self.rank, self.ranks = comm.rank, comm.size
        self._open, self._is_copy = True, False
        self._scheduler = Scheduler()
        self._guard: Guard | None = None  # from the first bucket of a model on
        self._guarded = guard
        # Shared with others, if they want to.
        self._momentum = Momentum(revocable=revocable)
        own = comm.Dup()
        self._comm: Any = own if isinstance(own, GroupComm) else patience.Patient(own)
        self._plans = Plans(self._comm, exchange, tie, seed, zeros == "abstain", takes_device_memory)
        self._ledger = Ledger(comm.size, comm.rank, spans)
        self._free = weakref.finalize(self, _free, self._scheduler, self._plans)
        self._free.atexit = False  # the ranks need not end together

    def close(self) -> None:
        """End the thread, free the plans and the communicator. Collective. A second time it does nothing."""
        if self._guard is not None:
            self._guard.close()
        self._open = False
        self._free()

    def __enter__(self) -> "VoteState":
        return self

    def __exit__(self, *fault: object) -> None:
        # Not if the block raises: on one rank alone this may wait for the others, who wait for it.
        if fault[0] is None:
            self.close()

    def __repr__(self) -> str:
        where = f"rank {self.rank} of {self.ranks}" if self._open else "closed"
        return f"VoteState({where}, rule={self.rule}, exchange={self.exchange!r}, tie={self.tie!r}, steps={self.steps})"

    def __getstate__(self) -> dict[str, Any]:
        kept = ("rule", "exchange", "tie", "zeros", "nonfinite", "seed", "schedule", "revocable", "steps")
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self.__dict__.update(kept, _open=False, _is_copy=True, _guard=None, _free=lambda: None)

    def _check_open(self) -> None:
        self._check_original()
        if not self._open:
            raise ValueError(f"VoteState: it is closed: {_ANEW}")

    def _check_original(self) -> None:
        if self._is_copy:
            raise ValueError(f"VoteState: a copy (deepcopy, pickle) has neither ranks nor momentum: {_ANEW}")

    def share_momentum(self, other: "VoteState") -> None:
        """Use the other's momentum from now on: methods that are compared start from the same."""
        self._check_original()
        self._momentum = other._momentum

    def share_words(self, room: Room) -> None:
        """Let plans take their words from there: then only one of the states that share it may vote at a time."""
        self._plans.room = room

    def state_dict(self, parameters: Iterable[Tensor]) -> dict[str, Any]:
        """Return this rank's momentum, one tensor a parameter in its shape (None before its first step), and the steps.

        Each rank has its own: save one file a rank. A "delayed" traitor begins anew where it is loaded.
        """
        self._check_original()
        mine = {"steps": self.steps, "rank": self.rank, "ranks": self.ranks}
        return mine | {"momentum": self._momentum.state_dict(parameters)}

    def load_state_dict(self, state: dict[str, Any], parameters: Iterable[Tensor]) -> None:
        """Take over what `state_dict` gave on the same rank for the same parameters in the same order.

        Raises:
            ValueError: it is another rank's, the parameters have other shapes or another number, or a value is not
                finite; nothing was changed.

        """
        self._check_original()
        check_owner(state, self.rank)
        self._momentum.load_state_dict(state["momentum"], parameters)
        self.steps = state["steps"]

    def rollback(self) -> None:
        """Take the last step back: the momentum, and the step's number. Costs nothing; see `revocable`.

        Behind a backward that raised, it is what was voted on of that one.

        Raises:
            ValueError: the state is not revocable, or there is no step to take back.

        """
        self._check_original()
        self._scheduler.wait()  # votes of a backward that raised read the step's number yet
        self.steps -= self._momentum.rollback()
        if self._guard is not None:
            self._guard.forget()

    def statistics(self) -> Statistics | None:
        """Return what happened in the last whole step; None before there is one. A device is waited for."""
        self._check_original()
        return self._ledger.last()

    def momentum_of(self, bucket: Bucket) -> Tensor:
        """Return the momentum of a bucket, float32 (n,) on its device; `vote_bucket` changes it in place."""
        self._check_original()
        return self._momentum.of(bucket)

    def tie_step(self, index: int) -> int:
        """Return the step that seeds the coins of a bucket: each bucket of each step has its own."""
        return (self.steps << 16) + index

    def betray(self, words: bits.Words, n: int, *, index: int) -> None:
        """Let the adversary, if this rank is one, replace the words of a bucket of n coordinates in place."""
        if self.traitor is not None:
            self.traitor.lie_in_words(words, n, bucket=index, step=self.steps)

    def take(self, bucket: Bucket, future: "torch.futures.Future[Tensor]") -> None:
        """Vote on the next bucket of a step and fulfil its future, according to the schedule."""
        self._check_open()

        def vote() -> None:
            future.set_result(self.vote_bucket(bucket))

        if bucket.index() == 0:
            self._comm.patient = self.schedule == "overlap"
        self._comm.computing = not bucket.is_last()
        check_type(bucket)
        if self._guarded and (isinstance(bucket, GradBucket) or getattr(bucket, "owners", None)):
            self._watch(bucket)  # one of DDP's, or of FSDP's
        began = time.perf_counter()
        self._scheduler.submit(bucket, vote, self.schedule)
        if bucket.is_last():
            self.end_step(exposed=time.perf_counter() - began)

    def end_step(self, exposed: float = 0.0) -> None:
        """Close a step, once all its buckets are voted on; `exposed` are the seconds that were waited for them."""
        self._ledger.end_step(self.steps, exposed)
        self._momentum.turn()
        self.steps += 1
        news, self._ledger.news = self._ledger.news, []
        for line in news if self.rank == 0 else ():
            warnings.warn(f"mpisign: step {self.steps - 1}: {line}", stacklevel=2)

    def _watch(self, bucket: Bucket) -> None:
        """Show the guard a bucket; the first one makes it. Collective then."""
        if self._guard is None:
            self._guard = Guard(self, members_of(self._comm))
        if bucket.index() == 0:
            self._guard.begin(bucket)
        self._guard.voted(bucket)

    def vote_bucket(self, bucket: Bucket) -> Tensor:
        """Replace a bucket's gradient by the voted signs, in place: momentum, pack, adversary, exchange, unpack.

        The coding is done where the gradient lies; the words, not the floats, go from there. On a CUDA device what is
        left of it may still be queued, on the current stream.

        Raises:
            ValueError: on all ranks, gradients of another type than float32, bfloat16, float16 or float64, or they are
                not finite and `nonfinite` is "raise", or ranks that vote on different buckets.

        """
        self._check_open()
        buffer, index, spans = bucket.buffer(), bucket.index(), self._ledger.spans
        sizes = tuple(parameter.numel() for parameter in bucket.parameters())
        n, where, plan = buffer.numel(), buffer.device, self._plans.of(index, buffer, sizes)
        with timed(spans, "pack", where):
            absent = self._pack(bucket, plan, sizes)
        if self._guard is not None and not absent.all():
            self._guard.take_in()
        if self.observer is not None:
            self.observer(index, plan.words, absent)
        voted, roll = plan.vote(self.tie_step(index), spans), plan.roll
        line = self._ledger.nonfinite(roll.faults, index)
        if line and self.nonfinite == "raise":
            raise ValueError(f"step {self.steps}, {line}")
        if index == 0:
            self._ledger.hear(roll.agreed)
        self._ledger.count(plan.words, voted, n=n, absent=absent, tie=self.tie, moved=plan.moved)
        with timed(spans, "unpack", where):
            coding.unpack(voted, n, buffer)
            for part in pieces(plan.nobody, sizes) if voted.ndim == 1 else ():  # a second row has them already
                buffer[part] = 0
        return buffer

    def _pack(self, bucket: Bucket, plan: Plan, sizes: tuple[int, ...]) -> NDArray[np.bool_]:
        """Fill a plan's words and roll; return the parameters on which this rank abstains."""
        index, absent = bucket.index(), coding.silent(bucket.buffer(), sizes)
        faults = signing.fill(
            plan, bucket, absent, rule=self.rule, momentum=self._momentum, random_zeros=self.zeros == "random",
            key=rules.dither_key(self.seed, self.rank, index, self.steps),
        )  # fmt: skip
        if self.traitor is not None:
            with coding.on_host(plan.words) as host:
                self.betray(coding.words_of(host), bucket.buffer().numel(), index=index)
        if absent.any():
            mine = mask(~absent, edges_of(sizes), first=0, W=len(plan.words))
            plan.words &= coding.tensor_of(mine).to(plan.words.device)
        before = self._ledger.last() if index == 0 else None
        agreed = told(None if before is None else before.agreement)
        plan.roll.write(turn=self.tie_step(index), agreed=agreed, faults=faults, absent=absent)
        return absent


def _free(scheduler: Scheduler, plans: Plans) -> None:
    """Free what a state holds: closed, or collected."""
    scheduler.close()
    plans.close()


def _choose(name: str, choice: str, choices: Sequence[str]) -> None:
    if choice not in choices:
        raise ValueError(f"{name}: unknown name {choice!r}, choose from {', '.join(choices)}")


def vote_hook(state: VoteState, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """Vote on a bucket: `model.register_comm_hook(state, mpisign.vote_hook)`.

    A vote that fails is raised by `loss.backward()`, and by every backward after it. On other ranks the vote may wait
    for this one: start scripts with torchrun, or with `mpirun python -m mpi4py`, which end the job when a rank raises.

    The signs are no gradient any more: no GradScaler, no clipping of norms, no second backward into them (`no_sync` and
    `zero_grad` as with DDP), an optimizer without momentum (`mpisign.optimizer`), a step after each backward. The state
    refuses what it sees of these (`guard`). It does not see: gradients that are changed by hand and stay -1, 0 or 1; an
    optimizer that is not torch's; on a GPU, what begins and ends between the steps 1, 2, 4, 8, ... that are looked at.
    """
    buffer = bucket.buffer()
    future: torch.futures.Future[Tensor] = torch.futures.Future(devices=[buffer.device] if buffer.is_cuda else None)
    state.take(bucket, future)
    return future
