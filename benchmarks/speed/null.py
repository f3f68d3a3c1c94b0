"""Is a verdict to be believed? One vote under two names must be called indistinguishable, one slowed by 5 % slower.

    mpirun -bind-to core -n 2 python -m benchmarks.speed.null [--output FILE] [--figure FILE.svg]
    python -m benchmarks.speed.null --show FILE

The bench's own contest, of three methods on one gradient: a vote, the same again, and the same that then waits for 5 %
of the time it took. Its iterations are cut into comparisons of n each; each comparison gets a verdict as the tables
give it, by order statistics of the paired ratios, and one by the percentile bootstrap of the same pairs. How alike a
pair's sign is to the one before it is shown too: where ranks are not bound to cores, it is, and verdicts suffer.
"""

import time

import numpy as np
from scipy.stats import binomtest
from tabulate import tabulate

from benchmarks.keep import keep_and_show
from mpisign.report.statistics import CONFIDENCE, median_interval
from mpisign.voting.bucket import HeldBucket

COORDINATES, ITERATIONS, WARMUP, SLOWER = 2**18, 4000, 50, 0.05
NAMES = "vote-alltoall", "the same again", "and 5 % more"
LENGTHS = 6, 10, 20, 50, 100, 200  # n, iterations of a comparison: 20 make 200 of them


def bootstrap(ratios, rounds=1000):
    drawn = np.random.default_rng(0).integers(len(ratios), size=(rounds, len(ratios)))
    return np.quantile(np.median(ratios[drawn], axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])


WAYS = {"order statistics": lambda ratios: median_interval(ratios)[1:], "bootstrap": bootstrap}


def measure():
    import torch
    from mpi4py import MPI

    from mpisign.bench.contest import Contest
    from mpisign.methods.method import Terms
    from mpisign.methods.table import METHODS, ready
    from mpisign.ranks import group, launch
    from mpisign.voting.hook import vote_hook

    def slowed(state, bucket):
        began = time.perf_counter()
        future = vote_hook(state, bucket)
        end = began + (1 + SLOWER) * (time.perf_counter() - began)
        while time.perf_counter() < end:
            pass
        return future

    terms, alike = Terms(), dict.fromkeys(NAMES, METHODS[NAMES[0]])
    with (
        launch.session("null") as comm,
        group.process_group(comm, "gloo", one_node=True),
        ready(comm, alike, terms=terms) as methods,
    ):
        contest = Contest(comm, methods, terms=terms)
        methods[NAMES[2]].hook = slowed
        vector = torch.randn(COORDINATES, generator=torch.Generator().manual_seed(comm.rank))
        bucket, seconds = HeldBucket(0, vector, [vector], True), np.zeros((WARMUP + ITERATIONS, 3))
        for i in range(len(seconds)):
            for sample in contest.round(i, [bucket]):
                if sample["wrong"]:
                    raise RuntimeError(f"{sample['wrong']} wrong coordinates")
                seconds[i, NAMES.index(sample["method"])] = sample["seconds"]
        comm.Allreduce(MPI.IN_PLACE, seconds, MPI.MAX)
        if comm.rank == 0:
            yield {
                "type": "null",
                "ranks": comm.size,
                "coordinates": COORDINATES,
                "seconds": seconds[WARMUP:].round(9).tolist(),
            }


def rates(lines):
    """Yield (way, n, comparisons, of them called different though alike, those of 5 % more called slower)."""
    first, again, slow = np.array(lines[0]["seconds"]).T
    for way, interval in WAYS.items():
        for n in LENGTHS:
            parts = [slice(at, at + n) for at in range(0, len(first) - n + 1, n)]
            alike = [interval(first[part] / again[part]) for part in parts]
            slower = [interval(first[part] / slow[part])[1] < 1 for part in parts]
            yield way, n, len(parts), sum(not low <= 1 <= high for low, high in alike), sum(slower)


def share(count, of):
    interval = binomtest(count, of).proportion_ci(CONFIDENCE)
    return f"{count / of:.1%} [{interval.low:.1%}, {interval.high:.1%}]"


def show(lines, style):
    of, medians = lines[0], 1e3 * np.median(lines[0]["seconds"], axis=0)
    named = ", ".join(f"{name} {median:.3f}" for name, median in zip(NAMES, medians, strict=True))
    print(f"{of['ranks']} ranks, {of['coordinates']:,} coordinates, {len(of['seconds'])} iterations; ms: {named}\n")
    table = [[way, n, of, share(alike, of), share(slower, of)] for way, n, of, alike, slower in rates(lines)]
    first, again, _ = np.array(lines[0]["seconds"]).T
    signs = np.sign(first - again)
    nominal = 1 - CONFIDENCE
    headers = (
        "interval by",
        "n",
        "comparisons",
        f"alike, called different (nominal: at most {nominal:.0%})",
        "5 % found",
    )
    print(tabulate(table, headers, style))
    alike = np.corrcoef(signs[1:], signs[:-1])[0, 1]
    print(f"\nCorrelation of which of the two is slower with the pair before: {alike:.3f}")


def draw(lines):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    found = list(rates(lines))
    for axes, column, title in zip(figure.subplots(1, 2), (3, 4), ("the same vote under two names, called different",
                                   "slowed by 5 %, called slower"), strict=True):  # fmt: skip
        for i, way in enumerate(WAYS):
            rows = [row for row in found if row[0] == way]
            share = np.array([row[column] / row[2] for row in rows])
            ends = [binomtest(row[column], row[2]).proportion_ci(CONFIDENCE) for row in rows]
            reach = [
                [s - e.low for s, e in zip(share, ends, strict=True)],
                [e.high - s for s, e in zip(share, ends, strict=True)],
            ]
            axes.errorbar(
                [row[1] * 1.04**i for row in rows], share, reach, fmt="os"[i], c=f"C{i}", capsize=3, label=way
            )
        axes.set(xscale="log", title=title, xlabel="iterations of a comparison", ylabel="share of the comparisons")
        axes.set_xticks(LENGTHS, map(str, LENGTHS), minor=False)
        axes.minorticks_off()
        axes.legend()
        if column == 3:
            axes.axhline(1 - CONFIDENCE, c="grey", ls="--")
    return figure


if __name__ == "__main__":
    keep_and_show("null", __doc__, measure, show, draw)
