"""The vote as a communication hook of DistributedDataParallel.

With the voted signs as the "gradient", `torch.optim.SGD(lr, weight_decay=w)` is the paper's update
x <- x - lr * (sign(vote) + w * x); the momentum is each worker's own, before the sign, and lives in VoteState.
"""

# No postponed annotations here: DDP looks at those of its hooks.
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed import GradBucket  # type: ignore[attr-defined]

from ..coding import bits, coding, ties
from ..coding.rules import Signum
from ..coding.sizes import words_for
from ..ranks import clock, machine, patience
from ..ranks.agreement import agree
from ..ranks.clock import Spans
from .adversary import Traitor, check_adversary
from .bucket import Bucket
from .carriers import Carrier, GroupComm
from .exchange import exchange_class
from .momentum import Momentum
from .schedule import Scheduler, check_schedule
from .tensors import Plan, carrier_for, plan_for

if TYPE_CHECKING:
    from mpi4py import MPI


class VoteState:
    """What a worker keeps between steps: its momentum, its exchange plans, and how it votes.

    Args:
        comm: An MPI communicator, or a `carriers.GroupComm` for a process group; it is duplicated (collective).
        momentum: beta in m <- beta m + (1 - beta) g; 0 votes on the gradient itself (signSGD, without "um").
        exchange: One of EXCHANGES.
        tie: One of TIES: what becomes of a coordinate for which half of the ranks vote.
        adversary: What this rank sends instead of its signs, one of ADVERSARIES; None is honest.
        seed: Of the coins of ties and adversaries, the same on all ranks.
        spans: Collects the times of pack, vote, unpack and each collective.
        schedule: One of SCHEDULES; may be changed between steps. "overlap" votes on each bucket in a thread while
            backward goes on, "serial" (the paper's) on all of them when backward is done. Both give the same bits.
        takes_device_memory: Whether MPI is CUDA-aware. A wrong claim ends in a segmentation fault (see `place`).

    Raises:
        ValueError: on all ranks, if on any: an unknown exchange, tie rule, adversary or schedule, an exchange that a
            process group cannot do, momentum outside [0, 1), too low a thread level of MPI, or ranks that ask for
            different votes.

    """

    def __init__(
        self, comm: "MPI.Comm | GroupComm", momentum: float = 0.9, *, exchange: str = "alltoall", tie: str = "positive",
        adversary: str | None = None, seed: int = 0, spans: Spans | None = None, schedule: str = "overlap",
        takes_device_memory: bool = False,
    ) -> None:  # fmt: skip
        def check() -> None:
            exchange_class(exchange, counters=not isinstance(comm, GroupComm))
            _check(momentum, tie, adversary, schedule)
            if not isinstance(comm, GroupComm):
                machine.check_threads()

        agree(comm, (exchange, tie, momentum, seed), check)
        # Tuned: what the caller has chosen; `schedule` and `observer` may be changed between steps.
        self._exchange, self._takes_device_memory = exchange, takes_device_memory
        self.momentum, self.tie, self.seed, self.schedule = momentum, tie, seed, schedule
        self.traitor = None if adversary is None else Traitor(adversary, seed, rank=comm.rank)
        # Called with a bucket's number and the words that this rank really sends, int64 (W,), before they are sent.
        self.observer: Callable[[int, Tensor], None] | None = None
        # Kept from step to step.
        self.steps = 0
        self._plans: dict[int, Plan] = {}  # by bucket
        self._carriers: dict[torch.device, Carrier] = {}
        self._scheduler = Scheduler()
        own: Any = comm.Dup()
        self._comm: Any = own if isinstance(comm, GroupComm) else patience.Patient(own)
        # Shared with others, if they want to.
        self._momentum = Momentum()
        self.spans = spans or Spans()

    def close(self) -> None:
        """End the thread, free the plans and the communicator. Collective."""
        self._scheduler.close()
        for plan in self._plans.values():
            plan.close()
        self._plans.clear()
        for carrier in self._carriers.values():
            carrier.close()
        self._comm.Free()

    def share_momentum(self, other: "VoteState") -> None:
        """Use the other's momentum from now on: methods that are compared start from the same."""
        self._momentum = other._momentum

    def state_dict(self, parameters: Iterable[Tensor]) -> dict[str, Any]:
        """Return this rank's momentum, one tensor a parameter (None before its first step), and the step count.

        A "delayed" traitor begins anew where it is loaded.
        """
        return {"steps": self.steps, "momentum": self._momentum.state_dict(parameters)}

    def load_state_dict(self, state: dict[str, Any], parameters: Iterable[Tensor]) -> None:
        """Take over what `state_dict` gave for the same parameters in the same order."""
        self.steps = state["steps"]
        self._momentum.load_state_dict(state["momentum"], parameters)

    def momentum_of(self, bucket: Bucket) -> Tensor:
        """Return the momentum of a bucket, float32 (n,) on its device; `vote_bucket` changes it in place."""
        return self._momentum.of(bucket)

    def _plan_for(self, index: int, gradient: Tensor) -> Plan:
        W, plan = words_for(gradient.numel()), self._plans.get(index)
        if plan is None or plan.words.shape != (W,):
            if plan is not None:
                plan.close()
            plan = self._plans[index] = plan_for(
                self._carrier_for(gradient.device),
                W,
                exchange=self._exchange,
                tie=self.tie,
                seed=self.seed,
                where=gradient.device,
            )
        return plan

    def _carrier_for(self, where: torch.device) -> Carrier:
        if where not in self._carriers:
            self._carriers[where] = carrier_for(
                self._comm, where, self._exchange, takes_device_memory=self._takes_device_memory
            )
        return self._carriers[where]

    def tie_step(self, index: int) -> int:
        """Return the step that seeds the coins of a bucket: each bucket of each step has its own."""
        return (self.steps << 16) + index

    def betray(self, words: bits.Words, n: int, *, index: int) -> None:
        """Let the adversary, if this rank is one, replace the words of a bucket of n coordinates in place."""
        if self.traitor is not None:
            self.traitor.lie_in_words(words, n, bucket=index, step=self.steps)

    def take(self, bucket: Bucket, future: "torch.futures.Future[Tensor]") -> None:
        """Vote on the next bucket of a step and fulfil its future, according to the schedule."""

        def vote() -> None:
            future.set_result(self.vote_bucket(bucket))

        if bucket.index() == 0:
            self._comm.patient = self.schedule == "overlap"
        self._scheduler.submit(bucket, vote, self.schedule)
        if bucket.is_last():
            self.steps += 1

    def vote_bucket(self, bucket: Bucket) -> Tensor:
        """Replace a bucket's gradient by the voted signs, in place: momentum, pack, adversary, exchange, unpack.

        The coding is done where the gradient lies; the words, not the floats, go from there. On a CUDA device what is
        left of it may still be queued, on the current stream.

        Raises:
            ValueError: the gradients are not float32.

        """
        buffer, index = bucket.buffer(), bucket.index()
        if buffer.dtype != torch.float32:
            raise ValueError(f"bucket: gradients must be float32, got {buffer.dtype}")
        n, where, plan = buffer.numel(), buffer.device, self._plan_for(index, buffer)
        with clock.timed(self.spans, "pack", where):
            if self.momentum:
                coding.sign(buffer, plan.words, rule=Signum(self.momentum), momentum=self.momentum_of(bucket))
            else:
                coding.pack(buffer, plan.words)
            if self.traitor is not None:
                with coding.on_host(plan.words) as host:
                    self.betray(coding.words_of(host), n, index=index)
        if self.observer is not None:
            self.observer(index, plan.words)
        voted = plan.vote(self.tie_step(index), self.spans)
        with clock.timed(self.spans, "unpack", where):
            coding.unpack(voted, n, buffer)
        return buffer


def _check(momentum: float, tie: str, adversary: str | None, schedule: str) -> None:
    ties.check_tie(tie)
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum: must be in [0, 1), got {momentum}")
    check_adversary(adversary)
    check_schedule(schedule)


def vote_hook(state: VoteState, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """Vote on a bucket: `model.register_comm_hook(state, mpisign.vote_hook)`.

    A vote that fails is raised by `loss.backward()`, and by every backward after it. On other ranks the vote may wait
    for this one: start scripts with `python -m mpi4py`, which ends the job when a rank raises.
    """
    buffer = bucket.buffer()
    future: torch.futures.Future[Tensor] = torch.futures.Future(devices=[buffer.device] if buffer.is_cuda else None)
    state.take(bucket, future)
    return future
