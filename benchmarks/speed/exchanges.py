"""How fast are the exchanges, coding included, next to MPI's fp32 all-reduce of the same gradient?

    mpirun -n 16 python -m benchmarks.speed.exchanges [--output FILE]
    python -m benchmarks.speed.exchanges --show FILE

On one gradient, in random order, the slowest rank's time: MPI's all-reduce; each vote with its coding (pack and
unpack, no momentum); the coding alone, which no such vote can beat; `alltoall` without it; and the reduction's
operation, native and in Python, on one rank's counters by Reduce_local. Of all rounds the votes are compared with
each other, and with nothing else; the sums of the all-reduce are not checked.

Then an exchange of one of DDP's buckets, without coding, by how it is waited for: by MPI, as in the serial schedule;
asleep, as while backward goes on; started, then waited for by MPI, as when backward is done. Nothing computes beside
it, so what is seen is what naps cost, and not the core that they leave to others.
"""

import functools
import hashlib
import time
from contextlib import ExitStack

import numpy as np
import torch
from tabulate import tabulate

from benchmarks.keep import keep_and_show
from mpisign.coding import bits
from mpisign.coding.sizes import BLOCK, blocks_for, planes_for, words_for
from mpisign.methods.shares import Shares
from mpisign.ranks import launch, patience
from mpisign.report.statistics import median_interval
from mpisign.voting.exchange import EXCHANGES, plan
from mpisign.voting.native import CounterSum

N, BUCKET, ROUNDS = 25_600_000, 6_553_600, 15  # BUCKET: 25 MiB of fp32
WAITS = {"by MPI": (False, False), "asleep": (True, True), "started, then by MPI": (True, False)}  # patient, computing
DENSE, NATIVE, PYTHON = "MPI fp32 all-reduce", "operation of reduce, native", "operation of reduce, in Python"


def merge_in_python(P):
    """Make the operation of `reduce` a Python function over NumPy, as mpi4py lets one."""

    def merge(a, b, datatype):
        shape = -1, planes_for(P), BLOCK
        x, y = (np.frombuffer(buffer, np.uint64).reshape(shape) for buffer in (a, b))
        carry = np.zeros_like(x[:, 0])
        for k in range(shape[1]):
            half = x[:, k] ^ y[:, k]
            carry, y[:, k] = (x[:, k] & y[:, k]) | (half & carry), half ^ carry

    from mpi4py import MPI

    return MPI.Op.Create(merge, commute=True)


def counters_shape(P):
    return blocks_for(words_for(N)), planes_for(P), BLOCK


def contestants(comm, gradient, work):
    """Return {name: what it runs}; votes leave their signs in `work`."""
    words = np.empty(words_for(N), np.uint64)

    def vote(ours):
        bits.pack(gradient, ours.words)
        bits.unpack(ours.vote(), N, work)

    plans = {f"vote-{name}": plan(comm, len(words), exchange=name) for name in EXCHANGES}
    runs = {name: lambda ours=ours: vote(ours) for name, ours in plans.items()}
    runs["vote-alltoall without coding"] = plans["vote-alltoall"].vote
    total, planes = CounterSum(planes_for(comm.size)), np.zeros((2, *counters_shape(comm.size)), np.uint64)
    a, b = ([part, len(part), total.datatype] for part in planes)
    in_python = merge_in_python(comm.size)
    runs[NATIVE] = lambda: total.op.Reduce_local(a, b)
    runs[PYTHON] = lambda: in_python.Reduce_local(a, b)
    runs[DENSE] = lambda: comm.Allreduce(gradient, work)
    runs["coding alone"] = lambda: bits.unpack(bits.pack(gradient, words), N, work)
    return runs


def rounds(comm, runs, *, after=lambda name: None):
    """Return {name: the slowest rank's seconds in each round}, in random order."""
    from mpi4py import MPI

    order, samples = np.random.default_rng(0), {name: [] for name in runs}
    for play in range(-2, ROUNDS):
        for name in order.permutation(list(runs)):
            patience.quiet_barrier(comm)
            comm.Barrier()
            began = time.perf_counter()
            runs[name]()
            seconds = comm.allreduce(time.perf_counter() - began, MPI.MAX)
            if play >= 0:
                samples[name].append(seconds)
            after(name)
    return samples


def waits(comm, bucket, made):
    """Return {name, how it is waited for: what it runs}, each over a communicator of its own, which `made` frees."""
    from mpi4py import MPI

    runs = {}
    for wait, (patient, computing) in WAITS.items():
        own = patience.Patient(comm.Dup())
        made.callback(own.Free)
        own.patient, own.computing = patient, computing
        runs[DENSE, wait] = lambda own=own: own.Allreduce(MPI.IN_PLACE, bucket)
        mean, vector = Shares(comm.size, comm.rank).mean, torch.from_numpy(bucket)
        runs["bf16-mpi, coding included", wait] = functools.partial(mean, own, vector)
        for name in EXCHANGES:
            ours = plan(own, words_for(len(bucket)), exchange=name)
            made.callback(ours.close)
            runs[f"vote-{name}", wait] = ours.vote
    return runs


def measure():
    with launch.session("exchanges") as comm, ExitStack() as made:
        gradient = np.random.default_rng(comm.rank).standard_normal(N, dtype=np.float32)
        work, signs = np.empty_like(gradient), set()

        def look(name):
            if name.startswith("vote") and "without" not in name:
                signs.add(hashlib.sha256(bits.pack(work)).digest())

        whole = rounds(comm, contestants(comm, gradient, work), after=look)
        if len(set().union(*comm.allgather(signs))) != 1:
            raise RuntimeError("the votes differ")
        runs = waits(comm, np.zeros(BUCKET, np.float32), made)
        numbered = rounds(comm, dict(enumerate(runs.values())))
        if comm.rank == 0:
            for name, seconds in whole.items():
                yield {"type": "exchange", "name": name, "ranks": comm.size, "samples": seconds}
            for (name, wait), seconds in zip(runs, numbered.values(), strict=True):
                yield {"type": "bucket", "name": name, "wait": wait, "ranks": comm.size, "samples": seconds}


def show_waits(lines, style):
    samples = {(line["name"], line["wait"]): 1e3 * np.array(line["samples"]) for line in lines}
    table = []
    for name in dict.fromkeys(line["name"] for line in lines):
        medians = [median_interval(samples[name, wait]) for wait in WAITS]
        table.append([name, *(f"{median:.2f} [{low:.2f}, {high:.2f}]" for median, low, high in medians)])
    print(f"\nOne bucket of {BUCKET:,} coordinates, by how it is waited for, while nothing computes; ms [95 %]\n")
    print(tabulate(table, ["", *WAITS], style, colalign=("left", *["right"] * len(WAITS))))


def show(lines, style):
    buckets, lines = ([line for line in lines if (line["type"] == "bucket") == kept] for kept in (True, False))
    samples, table = {line["name"]: np.array(line["samples"]) for line in lines}, []
    for name, seconds in sorted(samples.items(), key=lambda item: np.median(item[1])):
        median, low, high = median_interval(1e3 * seconds)
        ratio = median_interval(samples[DENSE] / seconds)
        table.append([name, f"{median:.1f} [{low:.1f}, {high:.1f}]",
                      f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"])  # fmt: skip
    rounds = len(lines[0]["samples"])
    print(f"{lines[0]['ranks']} ranks, {N:,} coordinates, {rounds} rounds of one start; all votes alike\n")
    print(tabulate(table, ["", "ms [95 %]", f"{DENSE} / this [95 %]"], style, colalign=("left", "right", "right")))
    python = median_interval(samples[PYTHON] / samples[NATIVE])
    print(f"\nIn Python the operation takes {python.median:.2f} [{python.low:.2f}, {python.high:.2f}] times as long.")
    if buckets:  # the oldest record has none
        show_waits(buckets, style)


if __name__ == "__main__":
    keep_and_show("exchanges", __doc__, measure, show)
