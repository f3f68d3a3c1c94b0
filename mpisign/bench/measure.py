"""What the bench does with a model, or with bare vectors: the measuring itself, and the gathering of samples."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy

from ..ranks import agreement, clock, patience
from ..ranks.clock import Event, Spans
from ..report import rows
from ..report.records import Run
from ..voting.bucket import HeldBucket
from ..workload import models
from . import contest
from .contest import Contest, synchronize

if TYPE_CHECKING:
    from mpi4py import MPI

    from ..workload.data import Batch

BLOCK = 2  # overlapped iterations that a method has in a row
TIMES = 25  # that a part of measuring is done to see what it costs


class Recorder:
    """Gathers each rank's samples on rank 0, and if `traced` the time line that they bring. Collective."""

    def __init__(self, comm: MPI.Comm, run: Run, nodes: list[int], traced: bool = False) -> None:
        self.comm, self.run, self.nodes, self.traced = comm, run, nodes, traced
        self.wrong = 0
        self.clock_error = 0.0  # the most that ranks' time lines may be off rank 0's, seconds
        self._zero = comm.bcast(time.perf_counter())  # of the time line, by rank 0's clock

    def keep(self, kind: str, iteration: int, samples: list[dict[str, Any]]) -> None:
        """Keep samples as lines of that type; those of the warm-up (iterations below 0) only count what is wrong."""
        self.wrong += sum(sample.get("wrong", 0) for sample in samples)
        events = [sample.pop("events") for sample in samples]
        if iteration >= 0:
            about = {"type": kind, "iteration": iteration}
            lines = [about | sample for sample in samples]
            if self.traced:
                lines += self._time_line(lines, events)
            for rank, part in enumerate(self.comm.gather(lines) or []):
                self.run.samples += [line | {"rank": rank} for line in part]

    def _time_line(self, samples: list[dict[str, Any]], events: list[list[Event]]) -> list[dict[str, Any]]:
        """Return the lines of type "span": one for each sample and thread."""
        offset, error = clock.clock_offset(self.comm, self.nodes)
        self.clock_error = max(self.clock_error, error)
        return [
            {"type": "span", "of": sample["type"], "thread": thread,
             **{fact: sample[fact] for fact in ("iteration", "method", "bytes") if fact in sample},
             "spans": [_rounded(event, offset - self._zero) for event in found if event.thread == thread]}
            for sample, found in zip(samples, events, strict=True)
            for thread in dict.fromkeys(event.thread for event in found)
        ]  # fmt: skip

    def traffic(self, of: int | None, held: list[HeldBucket]) -> None:
        """Keep what each method sends and receives for these buckets."""
        tie = self.run.head["config"]["tie"]
        buckets = [[tuple(part.shape) for part in bucket.parts] for bucket in held]
        self.run.head["traffic"][str(of or "model")] = {
            method: sum(contest.traffic(method, shapes, tie, self.nodes) for shapes in buckets).T.tolist()  # type: ignore[union-attr]
            for method in self.run.head["methods"]
        }


def _rounded(event: Event, shift: float) -> list[Any]:
    """Return name, begin and seconds, whole nanoseconds: begin and end are rounded, so what is nested stays so."""
    began = round(event.began + shift, 9)
    return [event.name, began, round(round(event.began + event.seconds + shift, 9) - began, 9)]


class Trial:
    """A model in training: its replica, its optimizer, and the spans of its own work."""

    def __init__(self, config: dict[str, Any], where: torch.device, batches: Iterator[Batch], game: Contest) -> None:
        torch.manual_seed(config["seed"])
        self.model = models.build(config["model"], config["image_size"]).to(where)
        self.replica = models.parallel(self.model, config["bucket_mb"])
        self.replica.register_comm_hook(game, contest.play)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4, weight_decay=1e-4)  # the paper's
        self.spans, self.batches, self.device = Spans(game.spans.traced), batches, where
        self._kept: list[torch.Tensor] = []

    def backward(self) -> None:
        """Compute the gradient of the next batch; `play` gets it."""
        self.optimizer.zero_grad()
        with clock.timed(self.spans, "data", self.device):
            pictures, labels = (part.to(self.device) for part in next(self.batches))
        with clock.timed(self.spans, "forward", self.device):
            loss = cross_entropy(self.replica(pictures), labels)
        with clock.timed(self.spans, "backward", self.device):
            loss.backward()  # type: ignore[no-untyped-call]

    def step(self) -> None:
        """Apply what is in the gradient."""
        with clock.timed(self.spans, "step", self.device):
            self.optimizer.step()

    @torch.no_grad()
    def remember(self) -> None:
        """Keep the weights as they are now, for `restore`."""
        self._kept = self._kept or [torch.empty_like(weight) for weight in self.model.parameters()]
        for kept, weight in zip(self._kept, self.model.parameters(), strict=True):
            kept.copy_(weight)

    @torch.no_grad()
    def restore(self) -> None:
        """Set the weights back to what was remembered: after `none` they differ between ranks."""
        for kept, weight in zip(self._kept, self.model.parameters(), strict=True):
            weight.copy_(kept)


def measure_model(run: Run, comm: MPI.Comm, game: Contest, recorder: Recorder, trial: Trial) -> None:
    """Train the model for the iterations asked for; each gradient goes through every method."""
    config = run.head["config"]
    run.head["coordinates"] = sum(parameter.numel() for parameter in trial.model.parameters())
    overlap = config["schedule"] == "overlap"
    for iteration in _Rounds(comm, run, block=BLOCK if overlap else 1):
        trial.backward()
        samples = list(game.round(iteration + config["warmup"], game.held))
        game.apply(iteration + config["warmup"], game.held)
        trial.step()
        recorder.keep("exchange", iteration, samples)
        recorder.keep("compute", iteration, [{**trial.spans.take(), "events": trial.spans.take_events()}])
        if overlap:
            _overlapped(config, comm, game, recorder, trial, iteration)
    recorder.traffic(None, game.held)
    if set(run.head["methods"]) != {"none"}:
        weights = (parameter.detach().cpu().numpy() for parameter in trial.model.parameters())
        run.end["replicas_identical"] = agreement.same_everywhere(comm, weights)


def _overlapped(
    config: dict[str, Any], comm: MPI.Comm, game: Contest, recorder: Recorder, trial: Trial, played: int
) -> None:
    """Give each method its block of iterations, all from the same weights and momentum; `played` is the round."""
    trial.remember()
    game.remember()
    for method in game.shuffled():
        trial.restore()
        game.restore()
        for i in range(BLOCK if played >= 0 else 1):
            iteration = played * BLOCK + i
            step = (played + config["warmup"]) * BLOCK + i
            with game.overlapping(method, step):
                seconds = _timed(comm, trial)
            spans = trial.spans.take() | game.spans.take()
            events = trial.spans.take_events() + game.spans.take_events()
            wrong = game.wrong_overlapped(method)
            sample = {"method": method, "seconds": seconds, "wrong": wrong, "events": events, **spans}
            recorder.keep("overlapped", iteration if played >= 0 else -1, [sample])
    trial.restore()
    game.restore()


def _timed(comm: MPI.Comm, trial: Trial) -> float:
    patience.quiet_barrier(comm)
    comm.Barrier()
    began = time.perf_counter()
    trial.backward()
    trial.step()
    synchronize(trial.device)
    return time.perf_counter() - began


def cost(comm: MPI.Comm, game: Contest, trial: Trial | None) -> dict[str, Any]:
    """Return what measuring itself costs, the slowest rank's, when all samples are taken. Collective.

    `span_s` is a span's seconds, `spans_per_iteration` how many the busiest iteration had, `barrier_s` a barrier's
    seconds, `check_s` those of the check of a method's result. In overlapped iterations that check
    is `check_pieces_s`, and `keep_pieces_s` is what keeping the pieces takes, which is within the sample. Medians.
    """
    patience.quiet_barrier(comm)
    mine = {
        "span_s": _median_seconds(lambda: _hundred_spans(game.spans.traced)) / 100,
        "barrier_s": _median_seconds(comm.Barrier),
        "spans_per_iteration": game.spans.most + (trial.spans.most if trial else 0),
        **{f"{name}_s": statistics.median(seconds) for name, seconds in game.costs.items()},
    }
    told = comm.allgather(mine)
    return {name: max(other[name] for other in told) for name in mine}


def _median_seconds(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(TIMES):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _hundred_spans(traced: bool) -> None:
    spans = Spans(traced)
    for _ in range(100):
        with spans("pack"):
            pass


def measure_sizes(run: Run, comm: MPI.Comm, game: Contest, recorder: Recorder, where: torch.device) -> None:
    """Exchange random vectors of each size, as the micro-benchmarks do."""
    config = run.head["config"]
    for size in config["sizes"]:
        noise = torch.Generator().manual_seed(config["seed"] * comm.size + comm.rank)
        vector = torch.randn(size // 4, generator=noise).to(where)
        held = [HeldBucket(0, vector, [vector], True)]
        recorder.traffic(size, held)
        for iteration in _Rounds(comm, run, f"{size} bytes", size):
            samples = game.round(iteration + config["warmup"], held)
            recorder.keep("exchange", iteration, [{"bytes": size} | sample for sample in samples])


class _Rounds:
    """Counts the rounds of a measurement from -warmup on, until it has what was asked for. Collective.

    The number asked for may be the least: with `until` more follow until the intervals are narrow enough. They are
    looked at ever more rarely, so that looking stays cheap; and where to stop depends on their width alone, not on
    what they say (Chow & Robbins 1965).
    """

    def __init__(self, comm: MPI.Comm, run: Run, what: str = "round", size: int | None = None, block: int = 1) -> None:
        self.comm, self.run, self.what, self.size = comm, run, what, size
        self.config = run.head["config"]
        self.least = -(-self.config["iterations"] // block)
        self.cap = self.config["time_cap"] / max(1, len(self.config["sizes"]))

    def __iter__(self) -> Iterator[int]:
        """Count, with a progress bar on rank 0 of a terminal."""
        from tqdm import tqdm

        began, done = time.monotonic(), self.least
        hidden = self.comm.rank != 0 or not sys.stderr.isatty()
        with tqdm(total=self.config["warmup"] + self.least, desc=self.what, disable=hidden, leave=False) as bar:
            for i in range(-self.config["warmup"], self.least):
                yield i
                bar.update()
            while self.config["until"] and self.comm.bcast(self._goes_on(began)):
                more = max(1, done // 10)
                bar.total += more
                for i in range(done, done + more):
                    yield i
                    bar.update()
                done += more

    def _goes_on(self, began: float) -> bool | None:
        """Return, on rank 0, whether the intervals are still too wide and there is time."""
        if self.comm.rank != 0:
            return None
        wanted: float = self.config["until"]
        return time.monotonic() - began < self.cap and rows.widest(self.run, self.size) > wanted
