"""The vote as a communication hook of DistributedDataParallel.

With the voted signs as the "gradient", `torch.optim.SGD(lr, weight_decay=w)` is the paper's update
x <- x - lr * (sign(vote) + w * x); the momentum is each worker's own, before the sign, and lives in VoteState.
"""

# No postponed annotations here: DDP looks at those of its hooks.
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.utils.weak import WeakTensorKeyDictionary

from ..coding import bits, coding, ties
from ..ranks import clock, machine, patience
from ..ranks.agreement import agree
from ..ranks.clock import Spans
from ..ranks.worker import Worker
from .adversary import Traitor, check_adversary
from .bucket import Bucket
from .exchange import exchange_class
from .schedule import SCHEDULES
from .tensors import Plan, plan_for

if TYPE_CHECKING:
    from mpi4py import MPI


class VoteState:
    """What a worker keeps between steps: its momentum, its exchange plans, and how it votes.

    `comm` is duplicated (collective). `momentum` is beta in m <- beta m + (1 - beta) g; 0 votes on the gradient itself
    (signSGD, without "um"). `adversary` names what this rank sends instead (see ADVERSARIES); None is honest.
    `seed` must be the same on all ranks. `spans` collects the times of pack, vote, unpack and each collective.
    `schedule` is one of SCHEDULES and may be changed between steps: "overlap" votes on each bucket in a thread while
    backward goes on, "serial" (the paper's) on all of them when backward is done. Both give the same bits.
    `takes_device_memory`: MPI is CUDA-aware, surely, for a wrong claim ends in a segmentation fault (see `place`).

    Raises:
        ValueError: on all ranks, if on any: an unknown exchange, tie rule, adversary or schedule, momentum outside
            [0, 1), too low a thread level of MPI, or ranks that ask for different votes.

    """

    def __init__(
        self, comm: "MPI.Comm", momentum: float = 0.9, exchange: str = "alltoall", tie: str = "positive",
        adversary: str | None = None, seed: int = 0, spans: Spans | None = None, schedule: str = "overlap",
        takes_device_memory: bool = False,
    ) -> None:  # fmt: skip
        from mpi4py import MPI

        agree(comm, (exchange, tie, momentum, seed), lambda: _check(momentum, exchange, tie, adversary, schedule))
        self._exchange, self._takes_device_memory = exchange, takes_device_memory
        self.momentum, self.tie, self.seed, self.schedule = momentum, tie, seed, schedule
        self.traitor = None if adversary is None else Traitor(adversary, seed, comm.rank)
        self.spans = spans or Spans()
        self.steps = 0
        # Called with a bucket's number and the words that this rank really sends, int64 (W,), before they are sent.
        self.observer: Callable[[int, Tensor], None] | None = None
        self._worker = Worker()
        self._stream: torch.cuda.Stream | None = None  # for gradients on a CUDA device
        self._waiting: list[Callable[[], None]] = []  # the votes of the serial schedule
        own: Any = comm.Dup()
        self._comm: Any = patience.Patient(own) if isinstance(own, MPI.Comm) else own
        self._plans: dict[int, Plan] = {}
        # Momentum lies flat, bucket by bucket; a parameter's view outlives a new division into buckets.
        self._buckets: dict[int, tuple[Tensor, Sequence[Tensor]]] = {}
        self._views: MutableMapping[Tensor, Tensor] = WeakTensorKeyDictionary()  # by parameter

    def close(self) -> None:
        """End the thread, free the plans and the communicator. Collective."""
        self._worker.close()
        for plan in self._plans.values():
            plan.close()
        self._plans.clear()
        self._comm.Free()

    def share_momentum(self, other: "VoteState") -> None:
        """Use the other's momentum from now on: methods that are compared start from the same."""
        self._buckets, self._views = other._buckets, other._views

    def state_dict(self, parameters: Iterable[Tensor]) -> dict[str, Any]:
        """Return this rank's momentum, one tensor a parameter (None before its first step), and the step count.

        A "delayed" traitor begins anew where it is loaded.
        """
        views = [self._views.get(parameter) for parameter in parameters]
        return {"steps": self.steps, "momentum": [None if view is None else view.cpu().clone() for view in views]}

    def load_state_dict(self, state: dict[str, Any], parameters: Iterable[Tensor]) -> None:
        """Take over what `state_dict` gave for the same parameters in the same order."""
        self.steps = state["steps"]
        self._buckets.clear()
        self._views.clear()
        for parameter, momentum in zip(parameters, state["momentum"], strict=True):
            if momentum is not None:
                self._views[parameter] = momentum.detach().to(torch.float32).reshape(-1).clone()

    def momentum_of(self, bucket: Bucket) -> Tensor:
        """Return the momentum of a bucket, float32 (n,) on its device; `vote_bucket` changes it in place."""
        index, parameters = bucket.index(), bucket.parameters()
        if index in self._buckets:
            flat, parts = self._buckets[index]
            views = [self._views.get(parameter) for parameter in parameters]
            if len(views) == len(parts) and all(view is part for view, part in zip(views, parts, strict=True)):
                return flat
        flat = torch.zeros(bucket.buffer().numel(), device=bucket.buffer().device)
        parts = torch.split(flat, [parameter.numel() for parameter in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            if parameter in self._views:
                part.copy_(self._views[parameter])
            self._views[parameter] = part
        self._buckets[index] = flat, parts
        return flat

    def _plan_for(self, index: int, gradient: Tensor) -> Plan:
        W, plan = bits.words_for(gradient.numel()), self._plans.get(index)
        if plan is None or plan.words.shape != (W,):
            if plan is not None:
                plan.close()
            plan = self._plans[index] = plan_for(
                self._comm, self._exchange, W, self.tie, self.seed, gradient.device, self._takes_device_memory
            )
        return plan

    def tie_step(self, index: int) -> int:
        """Return the step that seeds the coins of a bucket: each bucket of each step has its own."""
        return (self.steps << 16) + index

    def betray(self, words: bits.Words, n: int, index: int) -> None:
        """Let the adversary, if this rank is one, replace the words of a bucket of n coordinates in place."""
        if self.traitor is not None:
            self.traitor.lie_in_words(words, n, index, self.steps)

    def _betray(self, words: Tensor, n: int, index: int) -> None:
        if self.traitor is not None:
            with coding.on_host(words) as host:
                self.betray(coding.words_of(host), n, index)

    def take(self, bucket: Bucket, future: "torch.futures.Future[Tensor]") -> None:
        """Vote on the next bucket of a step and fulfil its future, according to the schedule."""

        def vote() -> None:
            future.set_result(self.vote_bucket(bucket))

        if bucket.index() == 0:
            self._waiting = []  # what a backward that raised may have left
            self._comm.patient = self.schedule == "overlap"
        self._waiting.append(self._beside(bucket.buffer(), vote))
        if self.schedule == "overlap" or bucket.is_last():
            waiting, self._waiting = self._waiting, []
            for job in waiting:
                self._worker.submit(job)
        if bucket.is_last():
            # Nothing is left of backward but to wait; and what is raised here comes out of it, as from a future it
            # would not.
            self._worker.wait()
            self.steps += 1

    def _beside(self, buffer: Tensor, job: Callable[[], None]) -> Callable[[], None]:
        """Let a job on a CUDA tensor run on a stream of its own, which waits only for what this tensor depends on."""
        if not buffer.is_cuda:
            return job
        ready = torch.cuda.current_stream(buffer.device).record_event()
        if self._stream is None:
            self._stream = torch.cuda.Stream(buffer.device)  # type: ignore[no-untyped-call]
        stream = self._stream

        def on_stream() -> None:
            with torch.cuda.stream(stream):
                stream.wait_event(ready)
                job()

        return on_stream

    def vote_bucket(self, bucket: Bucket) -> Tensor:
        """Replace a bucket's gradient by the voted signs, in place: momentum, pack, adversary, exchange, unpack.

        The coding is done where the gradient lies; the words, not the floats, go from there. On a CUDA device what is
        left of it may still be queued, on the current stream.
        """
        buffer, index = bucket.buffer(), bucket.index()
        if buffer.dtype != torch.float32:
            raise ValueError(f"bucket: gradients must be float32, got {buffer.dtype}")
        n, where, plan = buffer.numel(), buffer.device, self._plan_for(index, buffer)
        with clock.timed(self.spans, "pack", where):
            if self.momentum:
                coding.momentum_pack(self.momentum_of(bucket), buffer, self.momentum, plan.words)
            else:
                coding.pack(buffer, plan.words)
            self._betray(plan.words, n, index)
        if self.observer is not None:
            self.observer(index, plan.words)
        voted = plan.vote(self.tie_step(index), self.spans)
        with clock.timed(self.spans, "unpack", where):
            coding.unpack(voted, n, buffer)
        return buffer


def _check(momentum: float, exchange: str, tie: str, adversary: str | None, schedule: str) -> None:
    exchange_class(exchange)
    ties.check_tie(tie)
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum: must be in [0, 1), got {momentum}")
    check_adversary(adversary)
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule: unknown name {schedule!r}, choose from {', '.join(SCHEDULES)}")
    machine.check_threads()


def vote_hook(state: VoteState, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """Vote on a bucket: `model.register_comm_hook(state, mpisign.vote_hook)`.

    A vote that fails is raised by `loss.backward()`, and by every backward after it. On other ranks the vote may wait
    for this one: start scripts with `python -m mpi4py`, which ends the job when a rank raises.
    """
    buffer = bucket.buffer()
    future: torch.futures.Future[Tensor] = torch.futures.Future(devices=[buffer.device] if buffer.is_cuda else None)
    state.take(bucket, future)
    return future
