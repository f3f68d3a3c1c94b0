"""How fast is the coding on one core, next to a plain pass over the same memory?

    python -m benchmarks.speed.kernels [--output FILE]
    python -m benchmarks.speed.kernels --show FILE

Each kernel and its limit are measured in turn, round after round, so that a slow moment hits both; what is shown is
the median time and the median of the paired ratios limit / kernel. A limit is a plain pass over about as many bytes, or
a kernel of PyTorch's; where the kernel is faster, the fastest pass is not known. What a small P votes on may lie in a
cache. Results are not checked here: the tests compare each kernel with a slow, obvious one.
"""

import time

import numpy as np
import torch
from tabulate import tabulate

from benchmarks.keep import keep_and_show
from mpisign.coding import bits, counting
from mpisign.coding.kernels.jit import kernel
from mpisign.coding.rules import Lion, Signum
from mpisign.report.statistics import median_interval

N = 25_600_000  # coordinates, about ResNet-50's
ROUNDS = 25


@kernel
def read(x):
    folded = np.uint64(0)
    for i in range(len(x)):
        folded ^= x[i]
    return folded


@kernel
def write(x, value):
    for i in range(len(x)):
        x[i] = value


@kernel
def copy(x, y):
    for i in range(len(x)):
        y[i] = x[i]


def contests():
    """Yield (name, kernel, name of its limit, limit, bytes that the kernel moves, wanted limit / kernel)."""
    rng = np.random.default_rng(0)
    x, y, m = (rng.standard_normal(N, dtype=np.float32) for _ in range(3))
    words, x64, y64 = bits.pack(x), x.view(np.uint64), y.view(np.uint64)
    size = x.nbytes + words.nbytes
    yield "pack", lambda: bits.pack(x, words), "read stream", lambda: read(x64), size, 0.9
    yield "unpack", lambda: bits.unpack(words, N, y), "write stream", lambda: write(y64, 1), size, 0.9
    moved, lerp = torch.from_numpy(y), lambda: moved.lerp_(torch.from_numpy(x), 0.1)
    fused = lambda: bits.sign(x, words, rule=Signum(0.9), momentum=m)  # noqa: E731
    yield "momentum and pack", fused, "torch's lerp_ alone", lerp, 3 * x.nbytes + words.nbytes, 1 / 1.15
    lion = lambda: bits.sign(x, words, rule=Lion(), momentum=m)  # noqa: E731
    yield "Lion and pack", lion, "momentum and pack", fused, 3 * x.nbytes + words.nbytes, None
    apart = lambda: bits.sign(x, words, rule=Signum(0.9), momentum=m, moved=y)  # noqa: E731
    yield "momentum moved elsewhere", apart, "momentum and pack", fused, 3 * x.nbytes + words.nbytes, None
    yield "copy stream", lambda: copy(x64, y64), "read stream", lambda: read(x64), 2 * x.nbytes, None
    for P in (3, 7, 15, 16, 31, 64):
        rows = rng.integers(0, 2**64, (P, len(words)), dtype=np.uint64)
        flat = rows.reshape(-1)
        vote, stream = (lambda: counting.majority(rows, out=words)), (lambda: read(flat))  # noqa: B023
        yield f"majority of {P}", vote, "read stream", stream, rows.nbytes + words.nbytes, 0.7


def measure():
    torch.set_num_threads(1)
    for name, candidate, limit_name, limit, size, wanted in contests():
        times = []
        for _ in range(ROUNDS + 2):
            began = time.perf_counter()
            limit()
            between = time.perf_counter()
            candidate()
            times.append((between - began, time.perf_counter() - between))
        limits, samples = zip(*times[2:], strict=True)  # the first two compile and touch the memory
        yield {"type": "kernel", "name": name, "bytes": size, "limit": limit_name, "wanted": wanted,
               "samples": samples, "limits": limits}  # fmt: skip


def reached(low, high, wanted):
    """Say whether an interval reaches what was wanted."""
    return "reached" if low >= wanted else "short" if high < wanted else "open"


def show(lines, style):
    table = []
    for line in lines:
        samples, limits = np.array(line["samples"]), np.array(line["limits"])
        ratio, low, high = median_interval(limits / samples)
        wanted = line["wanted"]
        verdict = "" if wanted is None else f"{wanted:.2f}, {reached(low, high, wanted)}"
        table.append([line["name"], 1e3 * np.median(samples), line["bytes"] / np.median(samples) / 1e9, line["limit"],
                      1e3 * np.median(limits), f"{ratio:.2f} [{low:.2f}, {high:.2f}]", verdict])  # fmt: skip
    print(f"{N:,} coordinates, one core, {len(lines[0]['samples'])} rounds, medians\n")
    headers = "kernel", "ms", "GB/s", "limit, in turn with it", "limit ms", "limit / kernel [95 %]", "wanted"
    print(tabulate(table, headers, style, floatfmt=".2f"))


if __name__ == "__main__":
    keep_and_show("kernels", __doc__, measure, show)
