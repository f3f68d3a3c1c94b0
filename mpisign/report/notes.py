"""What has to be known about a table: what the machine was, what to be careful with, and what did not run.

NOTES has them all, in the order in which they are printed; the warnings come first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from . import network
from .records import CLOCK
from .rows import enough_rounds
from .statistics import enough
from .summary import Summary
from .text import milliseconds

WARNING = "WARNING: "
CROWDED = "more ranks than cores: they slow each other down; don't report these times as a cluster's"
SETTLED = 2  # iterations until DDP had divided the gradient anew and the plans were made, before clock 3


class Note(NamedTuple):
    """When a note applies to a run, what it then says, and whether it is a warning."""

    applies: Callable[[Summary], bool]
    says: Callable[[Summary], str]
    warning: bool = False


class Remark(NamedTuple):
    """A note on one run."""

    text: str
    warning: bool


def remarks(summary: Summary) -> list[Remark]:
    """Return the notes that apply to a run: the warnings first, each kind in order."""
    said = [Remark(note.says(summary), note.warning) for note in NOTES if note.applies(summary)]
    return sorted(said, key=lambda remark: not remark.warning)


def not_run(summary: Summary) -> list[str]:
    """Return why which methods did not run, those of one reason together."""
    methods: dict[str, list[str]] = {}
    for method, why in summary.run.head["skipped"].items():
        methods.setdefault(why, []).append(method)
    return [f"{', '.join(alike)}: {why}" for why, alike in methods.items()]


def notes(summary: Summary) -> list[str]:
    """Return the notes that apply to a run as lines; WARNING leads a warning."""
    return [(WARNING if remark.warning else "") + remark.text for remark in remarks(summary)]


def _always(summary: Summary) -> bool:
    return True


def _machine(summary: Summary) -> dict[str, Any]:
    facts: dict[str, Any] = summary.run.head["machine"]
    return facts


def _network(summary: Summary) -> dict[str, Any]:
    """Return the facts of the network; records of before 2026-11-28 have none."""
    facts: dict[str, Any] = summary.run.head.get("network", {})
    return facts


def _config(summary: Summary) -> dict[str, Any]:
    config: dict[str, Any] = summary.run.head["config"]
    return config


def _hardware(summary: Summary) -> str:
    machine = _machine(summary)
    return (
        f"machine: {machine['device']}, {machine['cores']} cores, {machine['nodes']} node(s), "
        f"{machine['ranks']} ranks, {machine['ranks_per_core']:.3g} ranks per core, "
        f"{machine['torch_threads']} torch thread(s) a rank"
    )


def _software(summary: Summary) -> str:
    machine = _machine(summary)
    mpi = f"{machine['mpi']} (thread level {machine['thread_level']})"
    if machine["mpi"] == "none":
        mpi = f"no MPI, ranks started by {machine['launcher']}"
    return (
        f"software: {mpi}, torch {machine['torch']}, "
        f"numba {machine['numba']}, mpi4py {machine['mpi4py']}, Python {machine['python']}, "
        f"mpisign commit {machine['commit']}"
    )


def _device_memory(summary: Summary) -> str:
    fault = _machine(summary)["device_memory_fault"]
    return f"votes over MPI go {'from device memory' if fault is None else f'by way of the host: {fault}'}"


def _memory(summary: Summary) -> str:
    return f"memory: at most {max(summary.run.end['peak_bytes']) / 1e9:.2f} GB resident in a rank"


def _vote(summary: Summary) -> str:
    config = _config(summary)
    traitors = f"{config['adversaries']} ({config['adversary']})" if config["adversaries"] else "0"
    return (
        f"vote: tie rule {config['tie']}, momentum {config['momentum']}, traitors: {traitors}; seed {config['seed']}; "
        "zeros vote +1, and nothing watches for misuse, both unlike VoteState's defaults in a script of yours"
    )


def _beside(summary: Summary) -> str:
    threads = _machine(summary)["torch_threads"]
    return f"mpi and bf16-mpi compute by {threads} threads of their own beside backward's {threads}; votes code by one"


def _crowded(summary: Summary) -> bool:
    return bool(_machine(summary)["ranks_per_core"] > 1)


def _unbound(summary: Summary) -> bool:
    return not _crowded(summary) and _machine(summary).get("bound") is False


def _settled(summary: Summary) -> int:
    return 1 if summary.is_sweep or summary.run.head["clock"] == CLOCK else SETTLED


def _few_warm_up(summary: Summary) -> str:
    warmup, settled = _config(summary)["warmup"], _settled(summary)
    return f"{warmup} warm-up iterations: the first {settled} make the exchanges' plans"


def _few_samples(summary: Summary) -> str:
    covered = 1 - 2.0 ** (1 - summary.samples)
    return f"{summary.samples} samples: intervals are the range, which covers the median with {covered:.1%}, not 95 %"


def _few_for_all(summary: Summary) -> bool:
    return enough() <= summary.samples < enough_rounds(summary.run)


def _too_wide(summary: Summary) -> bool:
    until = _config(summary).get("until")
    return bool(until and summary.widest > until)


def _narrow(summary: Summary) -> bool:
    return bool(_config(summary).get("until")) and not _too_wide(summary)


def _until(summary: Summary) -> str:
    config = _config(summary)
    return (
        f"asked to go on, for {config['time_cap']:.0f} s at most, until every speed-up's interval is within "
        f"{config['until']:.3g} of it to each side: "
        + (f"within {summary.widest:.2g}" if math.isfinite(summary.widest) else "too few samples")
    )


def share_of_spans(summary: Summary) -> float:
    """Return what share of the shortest iteration of a vote (of any method, without one) its spans take themselves."""
    smallest = min(_config(summary)["sizes"], default=None)
    iterations, kinds = summary.measured[smallest].iteration, summary.run.kinds
    votes = [samples for method, samples in iterations.items() if kinds[method] == "vote"]
    shortest = min(float(np.median(samples)) for samples in votes or iterations.values())
    measuring = summary.run.end["measuring"]
    return float(measuring["spans_per_iteration"] * measuring["span_s"] / shortest)


def _measuring(summary: Summary) -> str:
    """Say what measuring itself costs."""
    cost = summary.run.end["measuring"]
    line = (
        f"measuring: a span costs {1e6 * cost['span_s']:.2g} us, {cost['spans_per_iteration']} of them in an iteration "
        f"are {100 * share_of_spans(summary):.2g} % of it; outside the samples: a barrier, "
        f"{milliseconds(cost['barrier_s'])} ms, and the check, {milliseconds(cost['check_s'])} ms an exchange"
    )
    if "keep_pieces_s" not in cost:
        return line
    return (
        f"{line}, {milliseconds(cost['check_pieces_s'])} ms an overlapped iteration; within these, for every method: "
        f"keeping the pieces to check, {milliseconds(cost['keep_pieces_s'])} ms"
    )


def _buckets(summary: Summary) -> str:
    """Say what can be hidden behind backward: the last bucket cannot."""
    asked, buckets = _config(summary)["bucket_mb"], summary.run.end["buckets"]
    first, last = (
        f"{bucket['bytes'] / 1e6:.3g} MB, ready at {100 * bucket['ready']:.3g} % of backward"
        for bucket in (buckets[0], buckets[-1])
    )
    return (
        f"DDP's buckets{'' if asked is None else f' with --bucket-mb {asked:.3g}, not its own'}: {len(buckets)}, "
        f"the largest of {max(bucket['bytes'] for bucket in buckets) / 1e6:.3g} MB; the first of {first}; the last of "
        f"{last}"
    )


def _checked_of_lossy(summary: Summary) -> str:
    if not summary.run.end.get("checked_whole", False):
        return "checked of PowerSGD, which is lossy: only that all ranks get the same bits"
    return (
        "checked of PowerSGD, which is lossy: of held gradients that each matrix is a projection of its mean, and what "
        "is not compressed a mean; overlapped only that all ranks get the same bits"
    )


def _checked(summary: Summary) -> str:
    """Say how overlapped exchanges were checked."""
    held = "checked: each exchange of a held gradient in full"
    if not summary.run.end.get("checked_whole", False):  # as records of before 2026-11-27
        return (
            f"{held}, each overlapped one on a piece of every bucket, another each time; keeping all of them would "
            "cost time"
        )
    return (
        f"{held}; of each overlapped one in full that all ranks have the same bits, and that a vote is the one on the "
        "words that were sent; on pieces, which cover every bucket in the fewest iterations that a run has, that these "
        "are the signs of what was put in, and that a mean is its mean"
    )


def _warm(summary: Summary) -> bool:
    votes = any(kind == "vote" for kind in summary.run.kinds.values())
    return votes and not summary.overlaps and _config(summary)["momentum"] > 0 and summary.run.head["clock"] < 2


def _divided_within(summary: Summary) -> bool:
    # A baseline is the first of nccl, gloo and mpi that runs: without one, none of them did.
    return summary.run.head["clock"] < CLOCK and summary.run.head["baseline"] is not None


def _on_network(judge: Callable[[dict[str, Any]], str | None]) -> Note:
    """Return the warning of what `judge` finds in the facts of the network."""
    return Note(
        lambda summary: bool(_network(summary)) and judge(_network(summary)) is not None,
        lambda summary: f"network: {judge(_network(summary))}",
        warning=True,
    )


NOTES = (
    Note(_always, _hardware),
    Note(_always, _software),
    Note(
        lambda summary: bool(_network(summary)),
        lambda summary: f"network: {network.told(_network(summary))}",
    ),
    _on_network(network.slow),
    _on_network(network.slow_gloo),
    Note(lambda summary: bool(_machine(summary).get("gpus")), _device_memory),
    Note(_always, _memory),
    Note(_always, _vote),
    Note(
        lambda summary: _machine(summary)["ranks"] == 1,
        lambda summary: "one rank: there is nothing to exchange; the times are those of the coding alone",
    ),
    Note(_crowded, lambda summary: CROWDED, warning=True),
    Note(
        _unbound,
        lambda summary: (
            "ranks are not bound to cores: as their threads wander, a sample resembles the one before it, "
            "and verdicts are wrong more often than they say (docs/measuring.md; mpirun -bind-to core, or the like)"
        ),
        warning=True,
    ),
    Note(
        lambda summary: summary.run.end.get("replicas_identical") is False,
        lambda summary: "replicas: DIFFER between ranks: a result was not the same on all of them",
        warning=True,
    ),
    Note(
        lambda summary: bool(_config(summary).get("trace")),
        lambda summary: (
            "traced: these times are not for verdicts; overlapped rivals have a callback for each bucket; votes have "
            "none"
        ),
        warning=True,
    ),
    Note(lambda summary: _config(summary)["warmup"] < _settled(summary), _few_warm_up, warning=True),
    Note(lambda summary: summary.samples < enough(), _few_samples, warning=True),
    Note(
        _few_for_all,
        lambda summary: (
            f"{summary.samples} samples: for verdicts that hold for all rows together, each column has enough from "
            f"{enough_rounds(summary.run)} on"
        ),
        warning=True,
    ),
    Note(_too_wide, _until, warning=True),
    Note(_narrow, _until),
    Note(
        lambda summary: _config(summary)["adversaries"] > 0,
        lambda summary: (
            "a vote's times include what a traitor takes to make its lie up; a dense method's only if overlapped"
        ),
    ),
    Note(
        lambda summary: bool(summary.at_ceiling) and not summary.is_sweep,
        lambda summary: (
            f"within noise of the ceiling: {', '.join(summary.at_ceiling)} took no longer than the method that sends "
            "nothing, so what their exchange costs is smaller than the noise of this run"
        ),
    ),
    Note(
        lambda summary: not summary.is_sweep and not summary.overlaps,
        lambda summary: (
            "iteration: compute and comm of the slowest ranks, added up iteration by iteration; the median of these "
            "sums is not the sum of the medians"
        ),
    ),
    Note(
        lambda summary: bool(summary.run.head["lossy"]),
        _checked_of_lossy,
    ),
    Note(lambda summary: summary.overlaps, _checked),
    Note(
        _warm,
        lambda summary: (
            "an old record: gradient and momentum were written just before the clock started; where both fit the "
            "cache, votes found their momentum warmer than in training"
        ),
    ),
    Note(
        _divided_within,
        lambda summary: (
            "an old record: gloo, nccl and mpi divided the gradient in a pass of their own, within the clock; DDP does "
            "so while it copies the gradient"
        ),
    ),
    Note(lambda summary: summary.overlaps and _machine(summary)["torch_threads"] > 1, _beside),
    Note(lambda summary: summary.overlaps and "buckets" in summary.run.end, _buckets),
    Note(lambda summary: "measuring" in summary.run.end, _measuring),
    Note(
        lambda summary: bool(summary.run.end.get("replicas_identical")),
        lambda summary: "replicas: bit-identical on all ranks",
    ),
)
