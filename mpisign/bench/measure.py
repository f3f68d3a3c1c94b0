"""What the bench does with a model, or with bare vectors: the measuring itself."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from ..methods.method import Ready, Terms
from ..ranks import agreement, patience
from ..ranks.clock import Spans
from ..report.records import Run
from ..voting.bucket import HeldBucket
from ..workload.cache import Flush
from ..workload.snapshot import Snapshot
from .contest import Contest, synchronize
from .recorder import Recorder
from .rounds import Rounds, fewest
from .trial import Trial

if TYPE_CHECKING:
    from ..ranks.launch import Comm
    from .setting import Setting

BLOCK = 2  # overlapped iterations that a method has in a row
TIMES = 25  # that a part of measuring is done to see what it costs


def measure(run: Run, comm: Comm, *, setting: Setting, methods: dict[str, Ready], terms: Terms) -> None:
    """Take all samples of a run, and note what measuring itself costs. Collective."""
    run.head["block"] = BLOCK if run.head["config"]["schedule"] == "overlap" else 1
    device, trial = setting.place.device, None
    planned = fewest(run) * run.head["block"]
    contest = Contest(comm, methods, terms=terms, iterations=planned)
    recorder = Recorder(comm, run, nodes=setting.place.nodes, traced=setting.config.trace)
    if setting.batches is None:
        contest.flush = Flush(device)
        _Sweep(run, contest, recorder).measure(device)
    else:
        trial = Trial(run.head["config"], contest.turn, device=device, batches=setting.batches)
        contest.flush = Flush(device, trial.model.parameters())  # no method reads the weights
        _OnModel(run, contest, recorder, trial=trial).measure()
    for method, wrong in contest.probe(recorder.largest, device=device, schedule=setting.config.schedule).items():
        recorder.count(method, wrong)
    run.end["measuring"] = cost(contest, trial)
    run.end |= {"wrong": recorder.wrong, "worst": recorder.worst}
    run.end["checked_whole"] = True  # overlapped exchanges too, which those of older records were not
    if setting.config.trace:
        run.end["clock_error_s"] = recorder.clock_error


class _OnModel:
    """Trains the model for the iterations asked for; each gradient goes through every method."""

    def __init__(self, run: Run, contest: Contest, recorder: Recorder, *, trial: Trial) -> None:
        self.run, self.contest, self.recorder, self.trial = run, contest, recorder, trial
        # After `none` weights differ between ranks, until they are restored. No gradient is kept meanwhile.
        self.weights = Snapshot(in_place_of=contest.gradient)
        self.warmup: int = run.head["config"]["warmup"]

    def measure(self) -> None:
        """Take the samples of all rounds."""
        run, contest, recorder, trial = self.run, self.contest, self.recorder, self.trial
        run.head["coordinates"] = sum(parameter.numel() for parameter in trial.model.parameters())
        overlap = run.head["config"]["schedule"] == "overlap"
        trial.settle()
        for iteration in Rounds(contest.comm, run):
            trial.backward()
            buckets = contest.turn.buckets
            samples = list(contest.round(iteration + self.warmup, buckets))
            contest.apply(iteration + self.warmup, buckets)
            trial.step()
            recorder.keep("exchange", iteration, samples)
            recorder.keep("compute", iteration, [{**trial.spans.take(), "events": trial.spans.take_events()}])
            if overlap:
                self._overlapped(iteration)
        recorder.traffic(None, contest.turn.buckets)
        run.end["buckets"] = trial.readiness.buckets(contest.comm)
        if set(run.head["kinds"].values()) != {"ceiling"}:
            weights = (parameter.detach().cpu().numpy() for parameter in trial.model.parameters())
            run.end["replicas_identical"] = agreement.same_everywhere(contest.comm, weights)

    def _overlapped(self, played: int) -> None:
        """Give each method its block of iterations, all from the same weights and momentum; `played` is the round."""
        contest, trial, weights = self.contest, self.trial, self.weights
        weights.keep(trial.model.parameters())
        contest.remember(contest.turn.buckets)
        for method in contest.shuffled():
            weights.restore()
            contest.restore()
            for i in range(BLOCK if played >= 0 else 1):
                with contest.overlapping(method, (played + self.warmup) * BLOCK + i):
                    seconds = self._timed(trial.backward)
                seconds += self._timed(trial.step)  # apart: when the clock has stopped a result may not be written
                spans = trial.spans.take() | contest.terms.spans.take()
                events = trial.spans.take_events() + contest.terms.spans.take_events()
                wrong = contest.wrong_overlapped(method)
                sample = {"method": method, "seconds": seconds, "wrong": wrong, "events": events, **spans}
                self.recorder.keep("overlapped", played * BLOCK + i if played >= 0 else -1, [sample])
        weights.restore()
        weights.drop()
        contest.restore()
        contest.forget()

    def _timed(self, work: Callable[[], None]) -> float:
        """Return what backward with the exchange takes, or the step, from the moment that all ranks are ready for it.

        The caches are flushed before: the check reads gradients, and of votes the momentum too.
        """
        self.contest.flush()
        patience.quiet_barrier(self.contest.comm)
        self.contest.comm.Barrier()
        began = time.perf_counter()
        work()
        synchronize(self.trial.device)
        return time.perf_counter() - began


class _Sweep:
    """Exchanges random vectors of each size, as the micro-benchmarks do, but other ones in each round.

    The momentum of a vote would come to be that of one vector, and the vote on it never change: a stale one would do.
    The momentum makes a step after each round.
    """

    def __init__(self, run: Run, contest: Contest, recorder: Recorder) -> None:
        self.run, self.contest, self.recorder = run, contest, recorder

    def measure(self, device: torch.device) -> None:
        """Take the samples of all rounds, size after size."""
        config, comm = self.run.head["config"], self.contest.comm
        for size in config["sizes"]:
            noise = torch.Generator(device).manual_seed(config["seed"] * comm.size + comm.rank)
            vector = torch.empty(size // 4, device=device)
            buckets = [HeldBucket(0, vector, [vector], True)]
            self.recorder.traffic(size, buckets)
            for iteration in Rounds(comm, self.run, what=f"{size} bytes", size=size):
                vector.normal_(generator=noise)
                samples = list(self.contest.round(iteration + config["warmup"], buckets))
                self.contest.advance()
                self.recorder.keep("exchange", iteration, [{"bytes": size} | sample for sample in samples])


def cost(contest: Contest, trial: Trial | None) -> dict[str, Any]:
    """Return what measuring itself costs, the slowest rank's, when all samples are taken. Collective.

    `span_s` is a span's seconds, `spans_per_iteration` how many the busiest iteration had, `barrier_s` a barrier's
    seconds, `check_s` those of the check of a method's result. In overlapped iterations that check
    is `check_pieces_s`, and `keep_pieces_s` is what keeping the pieces takes, which is within the sample. Medians.
    """
    comm, spans = contest.comm, contest.terms.spans
    patience.quiet_barrier(comm)
    mine = {
        "span_s": _median_seconds(lambda: _hundred_spans(spans.traced)) / 100,
        "barrier_s": _median_seconds(comm.Barrier),
        "spans_per_iteration": spans.most + (trial.spans.most if trial else 0),
        **{f"{name}_s": statistics.median(seconds) for name, seconds in contest.costs.items()},
    }
    everyones = comm.allgather(mine)
    return {name: max(other[name] for other in everyones) for name in mine}


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
