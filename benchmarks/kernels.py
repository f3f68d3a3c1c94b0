"""How fast is the coding on one core, next to what the memory allows? `python benchmarks/kernels.py [--output FILE]`.

Each kernel and its limit are measured in turn, round after round, so that a slow moment hits both; what is
printed is the median time and the median of the paired ratios limit / kernel.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate

from mpisign import bits, records, statistics, votes
from mpisign.jit import kernel

N = 25_600_000  # coordinates, about ResNet-50's
ROUNDS = 25


@kernel
def read(x):
    """Read a stream: fold every word into one."""
    folded = np.uint64(0)
    for i in range(len(x)):
        folded ^= x[i]
    return folded


@kernel
def write(x, value):
    """Write a stream."""
    for i in range(len(x)):
        x[i] = value


@kernel
def copy(x, y):
    """Read one stream and write another."""
    for i in range(len(x)):
        y[i] = x[i]


def contests():
    """Yield (name, kernel, name of its limit, limit, bytes that the kernel moves, wanted limit / kernel)."""
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal(N, dtype=np.float32) for _ in range(2))
    m = np.zeros_like(x)
    words, x64, y64 = bits.pack(x), x.view(np.uint64), y.view(np.uint64)
    mt, xt = torch.from_numpy(y), torch.from_numpy(x)
    size = x.nbytes + words.nbytes
    yield "pack", lambda: bits.pack(x, words), "read stream", lambda: read(x64), size, 0.9
    yield "unpack", lambda: bits.unpack(words, N, y), "write stream", lambda: write(y64, 1), size, 0.9
    lerp = lambda: mt.lerp_(xt, 0.1)  # noqa: E731
    yield (
        "momentum and pack",
        lambda: bits.momentum_pack(m, x, 0.9, words),
        "torch lerp_",
        lerp,
        3 * x.nbytes,
        1 / 1.15,
    )
    yield "copy stream", lambda: copy(x64, y64), "read stream", lambda: read(x64), 2 * x.nbytes, None
    for P in (3, 7, 15, 16, 31, 64):
        rows = rng.integers(0, 2**64, (P, len(words)), dtype=np.uint64)
        flat = rows.reshape(-1)
        vote, stream = lambda: votes.majority(rows, out=words), lambda: read(flat)  # noqa: B023
        yield f"majority of {P}", vote, "read stream", stream, rows.nbytes, 0.7


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--output", type=Path, help="keep the samples as JSON lines")
    output = arguments.parse_args().output
    torch.set_num_threads(1)
    kept, table = [records.machine() | {"type": "machine"}], []
    for name, candidate, limit_name, limit, size, wanted in contests():
        times = []
        for _ in range(ROUNDS + 2):
            began = time.perf_counter()
            limit()
            between = time.perf_counter()
            candidate()
            times.append((between - began, time.perf_counter() - between))
        limits, samples = np.array(times[2:]).T  # the first two compile and touch the memory
        ratio, low, high = statistics.median_interval(limits / samples)
        ms, limit_ms = 1e3 * np.median(samples), 1e3 * np.median(limits)
        rate = size / np.median(samples) / 1e9
        verdict = "" if wanted is None else "reached" if ratio >= wanted else "SHORT"
        table.append([name, ms, rate, limit_name, limit_ms, ratio, f"{low:.2f} to {high:.2f}", wanted, verdict])
        kept.append({"type": "kernel", "name": name, "limit": limit_name, "wanted": wanted,
                     "samples": samples.tolist(), "limits": limits.tolist()})  # fmt: skip
    print(f"{N:,} coordinates, one core, {ROUNDS} rounds\n")
    headers = "kernel", "ms", "GB/s", "limit", "ms", "limit / kernel", "95 % interval", "wanted", ""
    print(tabulate(table, headers, floatfmt=".2f", missingval=""))
    if output:
        records.write(output, [json.dumps(line) for line in kept])


if __name__ == "__main__":
    main()
