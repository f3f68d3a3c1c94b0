"""What the bench does with a model, or with bare vectors: the measuring itself, and the gathering of samples."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy

from . import check, contest, device, models, mpi, rows
from .contest import Contest, HeldBucket, synchronize
from .records import Run
from .spans import Spans

if TYPE_CHECKING:
    from mpi4py import MPI

    from .data import Batch

BLOCK = 2  # overlapped iterations that a method has in a row


class Recorder:
    """Gathers each rank's samples on rank 0. Collective."""

    def __init__(self, comm: MPI.Comm, run: Run, nodes: list[int]) -> None:
        self.comm, self.run, self.nodes = comm, run, nodes
        self.wrong = 0

    def keep(self, kind: str, iteration: int, samples: list[dict[str, Any]]) -> None:
        """Keep samples as lines of that type; those of the warm-up (iterations below 0) only count what is wrong."""
        self.wrong += sum(sample.get("wrong", 0) for sample in samples)
        if iteration >= 0:
            about = {"type": kind, "iteration": iteration}
            for rank, part in enumerate(self.comm.gather([about | sample for sample in samples]) or []):
                self.run.samples += [line | {"rank": rank} for line in part]

    def traffic(self, of: int | None, held: list[HeldBucket]) -> None:
        """Keep what each method sends and receives for these buckets."""
        tie = self.run.head["config"]["tie"]
        buckets = [[tuple(part.shape) for part in bucket.parts] for bucket in held]
        self.run.head["traffic"][str(of or "model")] = {
            method: sum(contest.traffic(method, shapes, tie, self.nodes) for shapes in buckets).T.tolist()  # type: ignore[union-attr]
            for method in self.run.head["methods"]
        }


class Trial:
    """A model in training: its replica, its optimizer, and the spans of its own work."""

    def __init__(self, config: dict[str, Any], where: torch.device, batches: Iterator[Batch], game: Contest) -> None:
        torch.manual_seed(config["seed"])
        self.model = models.build(config["model"], config["image_size"]).to(where)
        self.replica = models.parallel(self.model, config["bucket_mb"])
        self.replica.register_comm_hook(game, contest.play)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4, weight_decay=1e-4)  # the paper's
        self.spans, self.batches, self.device = Spans(), batches, where
        self._kept: list[torch.Tensor] = []

    def backward(self) -> None:
        """Compute the gradient of the next batch; `play` gets it."""
        self.optimizer.zero_grad()
        with device.timed(self.spans, "data", self.device):
            pictures, labels = (part.to(self.device) for part in next(self.batches))
        with device.timed(self.spans, "forward", self.device):
            loss = cross_entropy(self.replica(pictures), labels)
        with device.timed(self.spans, "backward", self.device):
            loss.backward()  # type: ignore[no-untyped-call]

    def step(self) -> None:
        """Apply what is in the gradient."""
        with device.timed(self.spans, "step", self.device):
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
        recorder.keep("compute", iteration, [trial.spans.take()])
        if overlap:
            _overlapped(config, comm, game, recorder, trial, iteration)
    recorder.traffic(None, game.held)
    if set(run.head["methods"]) != {"none"}:
        weights = (parameter.detach().cpu().numpy() for parameter in trial.model.parameters())
        run.end["replicas_identical"] = check.same_everywhere(comm, weights)


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
            wrong = game.wrong_overlapped(method)
            recorder.keep("overlapped", iteration if played >= 0 else -1,
                          [{"method": method, "seconds": seconds, "wrong": wrong, **spans}])  # fmt: skip
    trial.restore()
    game.restore()


def _timed(comm: MPI.Comm, trial: Trial) -> float:
    mpi.gather_quietly(comm)
    comm.Barrier()
    began = time.perf_counter()
    trial.backward()
    trial.step()
    synchronize(trial.device)
    return time.perf_counter() - began


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
        so_far = Run(self.run.head, self.run.samples)  # a run groups its samples once
        return time.monotonic() - began < self.cap and rows.widest(so_far, self.size) > wanted
