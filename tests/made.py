"""Records for tests. The times of most are made up: of a run of two ranks, and of a sweep that the cost model made."""

import dataclasses
import json
import subprocess
import sys

from launch import ROOT, environment

from mpisign.network import cost
from mpisign.network.cost import GBIT, Rates
from mpisign.report import records

SIZES = tuple(4**k for k in range(5, 12))
KNOWN = Rates(alpha=20e-6, beta=1 / (10 * GBIT), gamma=0.5e-9, delta=3e-12, fixed=40e-6)


def made_run(slow=1.0, sizes=(), iterations=8, schedule="serial", **machine):
    """A record of two ranks whose times are known: compute 10 ms, gloo 8 ms, the vote 2 ms, on the slower rank."""
    methods = ["none", "gloo", "vote-alltoall"]
    seconds = {"none": 1e-6, "gloo": 8e-3, "vote-alltoall": 2e-3 * slow}
    facts = {"cpu": "X", "cores": 2, "device": "X", "ranks": 2, "nodes": 1, "mpi": "M 1", "python": "3", "torch": "2"}
    facts |= {"ranks_per_core": 1.0, "torch_threads": 1, "thread_level": "multiple", "numba": "0", "mpi4py": "4"}
    facts |= {"commit": "abc"} | machine
    config = {"model": "tiny", "batch_size": 3, "image_size": 32, "data": "", "sizes": list(sizes), "bucket_mb": 25.0,
              "tie": "positive", "momentum": 0.9, "adversaries": 0, "adversary": "invert", "iterations": iterations,
              "warmup": 2, "seed": 0, "schedule": schedule}  # fmt: skip
    ranks = facts["ranks"]
    traffic = {"none": [[0] * ranks] * 2, "gloo": [[400] * ranks] * 2,
               "vote-alltoall": [[10, *[30] * (ranks - 1)], [20] * ranks]}  # fmt: skip
    run = records.Run({"type": "run", "format": records.FORMAT, "clock": records.CLOCK,
                       "config": config, "machine": facts, "methods": methods,
                       "kinds": {"none": "ceiling", "gloo": "rival", "vote-alltoall": "vote"}, "lossy": [],
                       "skipped": {"nccl": "no CUDA"}, "baseline": "gloo", "coordinates": 100, "block": 1,
                       "traffic": dict.fromkeys(map(str, sizes or ["model"]), traffic)})  # fmt: skip
    for iteration in range(iterations):
        jitter = 1 + iteration / 1000
        for rank in range(ranks):
            share = jitter * (1.0 if rank else 0.5)
            if not sizes:
                seconds_of = {"data": 1e-3, "forward": 3e-3, "backward": 5e-3, "step": 1e-3}
                line = {"type": "compute", "rank": rank, "iteration": iteration}
                run.samples.append(line | {name: value * share for name, value in seconds_of.items()})
            for size in sizes or [None]:
                for method in methods:
                    line = {"type": "exchange", "rank": rank, "iteration": iteration, "method": method, "wrong": 0,
                            "seconds": seconds[method] * share, "wait": 1e-4}  # fmt: skip
                    line |= {"pack": 5e-4 * share, "all-to-all": 1e-3 * share} if method.startswith("vote") else {}
                    run.samples.append(line | ({"bytes": size} if size else {}))
                    if schedule == "overlap":  # half of the exchange is hidden behind 9 ms of backward and the like
                        line = line | {"type": "overlapped", "seconds": 1e-2 * share + line["seconds"] / 2}
                        run.samples.append(line | seconds_of)
    run.end = {
        "type": "end",
        "wrong": 0,
        "wall_s": 1.0,
        "peak_bytes": [10**9, *[2 * 10**9] * (ranks - 1)],
        "replicas_identical": True,
    }
    return run


def newest(name):
    """A real record, from results/published/."""
    return max((ROOT / "results" / "published").glob(f"*/*-{name}.jsonl"), key=lambda path: path.name)


def redrawn(run, **changes):
    """The run with other facts: of its config, or else of its machine."""
    head = json.loads(json.dumps(run.head))
    for name, value in changes.items():
        head["config" if name in head["config"] else "machine"][name] = value
    return dataclasses.replace(run, head=head)


def kept(run, path):
    records.write(path, run.lines())
    return path


def report_alone(path):
    """Report a file in a process of its own, whose last line names the slow packages that it loaded, and its code."""
    program = (
        f"import sys; from mpisign.report import __main__ as report; code = report.main([{str(path)!r}]); "
        "print(*sorted({name.split('.')[0] for name in sys.modules} & "
        "{'matplotlib', 'jinja2', 'scipy', 'torch', 'numba', 'mpi4py'}), 'code', code)"
    )
    return subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=True
    )


def rates_of(method):
    """What a record can tell apart: an all-reduce has no spans."""
    return KNOWN if method in cost.MODELLED_VOTES else Rates(KNOWN.alpha, KNOWN.beta)


def made_sweep(ranks=4, nodes=1, sizes=SIZES, names=tuple(cost.FORMULAS), outliers=0, bend=1.0):
    """A sweep whose times are the model's; the first `outliers` iterations are ten times as long.

    From the middle size on, everything takes `bend` times as long as the model says.
    """
    run = made_run(sizes=sizes, ranks=ranks, nodes=nodes)
    run.head |= {"methods": list(names), "kinds": {name: cost.FORMULAS[name].kind for name in names}}
    run.head |= {"baseline": None, "traffic": {str(size): dict.fromkeys(names, [[1] * ranks] * 2) for size in sizes}}
    run.samples = []
    for size in sizes:
        for name in names:
            taken, rates = cost.terms(name, ranks, d=size // 4, nodes=nodes), rates_of(name)
            parts = {"seconds": cost.seconds(taken, rates), "pack": rates.gamma * taken.coordinates / 4,
                     "unpack": rates.gamma * taken.coordinates * 3 / 4 + rates.fixed / 2,
                     "vote": rates.delta * taken.ballots + rates.fixed / 2}  # fmt: skip
            for iteration in range(8):
                factor = (10 if iteration < outliers else 1) * (bend if size >= sizes[len(sizes) // 2] else 1)
                for rank in range(ranks):
                    idle = rank and name in ("vote-server", "vote-hierarchical")  # has no vote
                    spans = {
                        span: factor * part for span, part in parts.items() if part and not (idle and span == "vote")
                    }
                    run.samples.append({"type": "exchange", "iteration": iteration, "rank": rank, "bytes": size,
                                        "method": name, "wrong": 0, "wait": 1.0, **spans})  # fmt: skip
    return run
