"""How much does one start differ from the next, and does `mpisign report compare` know? 20 starts of the same run.

    python -m benchmarks.speed.restarts [--output FILE]
    python -m benchmarks.speed.restarts --show FILE

Each start is an mpirun of the bench, bound to cores. As nothing changes between them, each verdict of a comparison is
false: of one start with another, of some in a row with those right after them, and of some with others that they took
turns with. A machine that drifts from one block of starts to the next shows in the second; were the starts drawn for
both sides, it never could. Differences are planted in numbers: the newer side's times of one method are multiplied.
"""

import subprocess
import sys
import tempfile
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
from scipy.stats import binomtest
from tabulate import tabulate

from benchmarks.keep import keep_and_show
from mpisign.report import records
from mpisign.report.compare import compare, started
from mpisign.report.records import Run
from mpisign.report.statistics import CONFIDENCE

STARTS, RANKS = 20, 2
BENCH = ("-m", "mpisign.bench", "--sizes", "64K:4M:8", "--methods", "mpi,gloo,bf16,vote-alltoall,vote-server",
         "--iterations", "30")  # fmt: skip
SIDES = 4, 5, 10  # starts on a side
PLANTED = 0.02, 0.05, 0.1, 0.2
CHANGED = "vote-alltoall"


def measure():
    with tempfile.TemporaryDirectory() as folder:
        for number in range(STARTS):
            path = Path(folder, f"{number}.jsonl")
            command = ["mpirun", "-bind-to", "core", "-n", str(RANKS), sys.executable, *BENCH, "--output", str(path)]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            run = records.read(path)
            kept = ("iteration", "rank", "method", "bytes", "seconds", "wrong")
            run.samples = [[line[name] for name in kept] for line in run.exchange]
            yield {"type": "start", "head": run.head, "names": kept, "samples": run.samples}


def read(line):
    return started(Run(line["head"], [{"type": "exchange"} | dict(zip(line["names"], values, strict=True))
                              for values in line["samples"]]))  # fmt: skip


def changed(start, share):
    """Return the start, CHANGED having taken so much longer."""
    longer = {cell: times * (1 + share if cell[0] == CHANGED else 1) for cell, times in start.samples.items()}
    return replace(start, samples=longer)


def false(olds, news, **options):
    """Return how many cells have a verdict, of how many, and whether the exit code would be 3."""
    said = [cells[-1] for cells in compare(olds, news, **options).cells]
    return sum(word in ("faster", "slower") for word in said), len(said), "slower" in said


def found(olds, news):
    """Return which share of the changed cells is called slower."""
    said = [cells[-1] for cells in compare(olds, news).cells if cells[0].startswith(CHANGED)]
    return np.mean([word == "slower" for word in said])


def sides(runs, count, *, turns=False):
    """Yield pairs of sides: one start and another, all pairs of them; or of starts in a row the first and last half.

    If they take `turns`, the second start and each other after it are the new side.
    """
    if count == 1:
        yield from (([one], [other]) for one, other in combinations(runs, 2))
        return
    for at in range(len(runs) - 2 * count + 1):
        row = runs[at : at + 2 * count]
        yield (row[::2], row[1::2]) if turns else (row[:count], row[count:])


def share(count, of):
    interval = binomtest(int(count), int(of)).proportion_ci(CONFIDENCE)
    return f"{count / of:.1%} [{interval.low:.1%}, {interval.high:.1%}]"


def show(lines, style):
    runs, head = [read(line) for line in lines], lines[0]["head"]
    named = ", ".join(head["methods"])
    print(f"{len(runs)} starts of {head['machine']['ranks']} ranks, {head['config']['iterations']} iterations of "
          f"{len(head['config']['sizes'])} sizes: {named}\n")  # fmt: skip
    rows = []
    ways = [
        ("one and the next", {}, list(pairwise([run] for run in runs)), False),
        ("any two", {}, list(sides(runs, 1)), True),
        ("any two", {"at_least": 0.0}, list(sides(runs, 1)), True),
    ]
    for turns, how in ((False, "block after block"), (True, "in turns")):
        ways += [(f"{count} and {count}, {how}", {}, list(sides(runs, count, turns=turns)), True)
                 for count in SIDES if 2 * count <= len(runs)]  # fmt: skip
    for name, options, pairs, shared in ways:
        counts = np.array([false(olds, news, **options) for olds, news in pairs])
        any_false = (counts[:, 0] > 0).sum()
        rows.append([
            name, "0 %" if options or len(pairs[0][0]) > 1 else "10 %", len(pairs),
            f"{counts[:, 0].sum() / counts[:, 1].sum():.1%}",
            f"{any_false / len(pairs):.1%}" if shared else share(any_false, len(pairs)),
            f"{counts[:, 2].mean():.1%}",
            *("" if options else f"{np.mean([found(o, [changed(run, by) for run in n]) for o, n in pairs]):.0%}"
              for by in PLANTED),
        ])  # fmt: skip
    planted = [f"{by:.0%} found" for by in PLANTED]
    headers = ["compared", "counts from", "comparisons", "cells with a verdict, all false", "tables with one",
               "exit code 3", *planted]  # fmt: skip
    print(tabulate(rows, headers, style))
    print("\nThe comparisons share their starts, so their rates are less certain than so many would be. Those of "
          "several starts a side are few.")  # fmt: skip


if __name__ == "__main__":
    keep_and_show("restarts", __doc__, measure, show)
