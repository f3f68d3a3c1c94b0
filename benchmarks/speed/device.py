"""How fast is the coding on a CUDA device, next to a copy on it of as many bytes?

    python -m benchmarks.speed.device [--output FILE]
    python -m benchmarks.speed.device --show FILE

Each kernel and its copy are measured in turn, by the device's own events, from a cache that is full of something else,
and checked against the CPU; shown are median times and the median of the paired ratios. Without CUDA the code is 2.
"""

import sys

import numpy as np
import torch
from tabulate import tabulate

from benchmarks.keep import keep_and_show
from benchmarks.speed.kernels import reached
from mpisign.coding import coding
from mpisign.coding.rules import Signum
from mpisign.coding.sizes import words_for
from mpisign.report.statistics import median_interval

N, P, ROUNDS = 25_600_000, 16, 50  # coordinates, about ResNet-50's
WANTED, WANTED_MS = 0.8, 0.3  # of the copy's speed; for all three


def timed(call, scratch):
    scratch.zero_()  # more than the cache holds; and while it is written, the host gets ahead of the device
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    call()
    ended.record()
    ended.synchronize()
    return 1e-3 * began.elapsed_time(ended)


def packed(gradient, momentum, words):
    coding.sign(gradient, words, rule=Signum(0.9), momentum=momentum)
    return words


def contests():
    """Yield (name, call, bytes that it moves, its first result as the CPU has it)."""
    m, g, rows = torch.randn(N), torch.randn(N), torch.randint(-(2**63), 2**63 - 1, (P, words_for(N)))
    momentum, gradient, ballots = m.cuda(), g.cuda(), rows.cuda()
    words, voted, signs = (torch.empty_like(x) for x in (ballots[0], ballots[0], gradient))
    size, elected = words.nbytes, coding.majority(rows)
    pack = lambda: packed(gradient, momentum, words)  # noqa: E731
    vote = lambda: coding.majority(ballots, out=voted)  # noqa: E731
    unpack = lambda: coding.unpack(voted, N, signs)  # noqa: E731
    yield "momentum and pack", pack, 12 * N + size, packed(g, m, torch.empty_like(rows[0]))
    yield f"majority of {P}", vote, (P + 1) * size, elected
    yield "unpack", unpack, 4 * N + size, coding.unpack(elected, N)
    yield "all three", lambda: (pack(), vote(), unpack())[2], 16 * N + (P + 3) * size, coding.unpack(elected, N)


def measure():
    if not torch.cuda.is_available():
        print("no CUDA device: nothing was measured", file=sys.stderr)
        raise SystemExit(2)
    name, coder = torch.cuda.get_device_name(), coding.coder(torch.device("cuda", 0))
    scratch = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    for what, call, size, truth in contests():
        wrong = int((call().cpu() != truth).sum())
        source, target = torch.ones((2, size // 2), dtype=torch.uint8, device="cuda")
        pairs = [(timed(call, scratch), timed(lambda: target.copy_(source), scratch)) for _ in range(ROUNDS + 3)]  # noqa: B023
        samples, limits = zip(*pairs[3:], strict=True)
        yield {"type": "device", "name": what, "device": name, "coder": coder, "bytes": size, "wrong": wrong,
               "samples": samples, "limits": limits}  # fmt: skip


def show(lines, style):
    table = []
    for line in lines:
        samples, limits = np.array(line["samples"]), np.array(line["limits"])
        ratio, low, high = median_interval(limits / samples)
        table.append([line["name"], 1e3 * np.median(samples), line["bytes"] / np.median(samples) / 1e9,
                      1e3 * np.median(limits), f"{ratio:.2f} [{low:.2f}, {high:.2f}]",
                      f"{WANTED}, {reached(low, high, WANTED)}", line["wrong"]])  # fmt: skip
    print(f"{N:,} coordinates, {lines[0]['device']}, {lines[0]['coder']}, {len(samples)} rounds, medians\n")
    headers = "kernel", "ms", "GB/s", "copy ms", "copy / kernel [95 %]", "wanted", "wrong"
    print(tabulate(table, headers, style, floatfmt=".3f"))
    print(f"\nall three in {table[-1][1]:.3f} ms, wanted {WANTED_MS}")
    if any(line["wrong"] for line in lines):
        raise SystemExit("some results are wrong, see the table")


if __name__ == "__main__":
    keep_and_show("device", __doc__, measure, show)
