"""How many traitors does the vote bear, and the mean? A quadratic with noisy gradients, 27 workers in one process.

    python -m benchmarks.paper.quadratic [--output FILE] [--figure FILE.svg]
    python -m benchmarks.paper.quadratic --show FILE

The toy of arXiv 1810.05291: f(x) = |x|^2 / 2 in 1000 dimensions, N(0, 1) noise on each coordinate of each worker's
gradient. Traitors send minus their gradient; in a case of its own, one sends minus SCALE times its gradient, more than
all others together. The learning rate is constant: the best of a grid, by the median last objective of other seeds, for
each method and that number of traitors ("tuned for them") or without any ("tuned for none"). No rate was tuned for 14
traitors, who outvote the others, nor for the one who scales: "tuned for them" takes the rates for 13 and for none.
Start, N(0, 1), and noise of a seed are the same for all, so that methods are compared in pairs.
"""

import itertools

import numpy as np
import torch
from tabulate import tabulate

from benchmarks.keep import keep_and_show
from mpisign import majority, pack, unpack
from mpisign.report.statistics import median_interval

N, P, STEPS, EVERY, SCALE = 1000, 27, 1000, 25, 40
PADDED = -(-N // 64) * 64  # each vector begins with a word of its own
LOST = P // 2 + 1  # traitors that outvote the others
RATES = [float(f"{rate:.3g}") for rate in np.logspace(-4, 0, 13)]
TUNING, SEEDS = range(100, 105), range(12)
METHODS = {"vote": "o", "mean": "s"}  # and their markers
TUNED = "them", "none"  # whom the rate is best for: the traitors there are, or no traitors


def descend(weights_P, rates, seed):
    """Return {method: objective (R, 1 + STEPS / EVERY)} at the R rates of each; worker p sends weights_P[p] g."""
    rng = np.random.default_rng(seed)
    weights = np.array(weights_P, np.float32)
    vote = np.tile(np.pad(rng.standard_normal(N, np.float32), (0, PADDED - N)), (len(rates["vote"]), 1))
    mean = np.tile(vote[0, :N], (len(rates["mean"]), 1))
    vote_rate, mean_rate = (np.array(rates[method], np.float32)[:, None] for method in METHODS)
    sent, noise, kept = np.zeros((P, *vote.shape), np.float32), np.empty((P, N), np.float32), {m: [] for m in METHODS}
    for step in range(STEPS + 1):
        if step % EVERY == 0:
            for method, x in zip(METHODS, (vote[:, :N], mean), strict=True):
                kept[method].append(0.5 * np.square(x, dtype=np.float64).sum(axis=1))
        rng.standard_normal(out=noise, dtype=np.float32)
        np.add(vote[:, :N], noise[:, None], out=sent[:, :, :N])
        np.multiply(weights[:, None, None], sent, out=sent)
        words = pack(sent.reshape(-1)).reshape(P, -1)
        vote -= vote_rate * unpack(majority(words), vote.size).reshape(vote.shape)
        mean -= mean_rate * (weights.mean() * mean + weights @ noise / P)
    return {method: np.transpose(kept[method]) for method in METHODS}


def measure():
    torch.set_num_threads(1)
    best = {}
    for traitors in range(LOST):
        weights = [-1] * traitors + [1] * (P - traitors)
        runs = [descend(weights, dict.fromkeys(METHODS, RATES), seed) for seed in TUNING]
        for method in METHODS:
            last = np.median([run[method][:, -1] for run in runs], axis=0)
            best[method, traitors] = RATES[int(np.argmin(last))]
            yield {"type": "tuning", "method": method, "traitors": traitors, "seeds": list(TUNING), "rates": RATES,
                   "last": rounded(last)}  # fmt: skip
    for traitors, scale in [*((traitors, 1) for traitors in range(LOST + 1)), (1, SCALE)]:
        chosen = min(traitors, LOST - 1) if scale == 1 else 0
        rates = {method: [best[method, chosen], best[method, 0]] for method in METHODS}
        runs = [descend([-scale] * traitors + [1] * (P - traitors), rates, seed) for seed in SEEDS]
        for method, i in ((method, i) for i in range(len(TUNED)) for method in METHODS):
            yield {"type": "runs", "method": method, "traitors": traitors, "scale": scale, "tuned": TUNED[i],
                   "rate": rates[method][i], "every": EVERY, "seeds": list(SEEDS),
                   "objective": [rounded(run[method][i]) for run in runs]}  # fmt: skip


def rounded(numbers):
    return [float(f"{number:.4g}") for number in numbers]


def cases(lines):
    """Return {(traitors, scale, tuned): {method: (objective of each seed over the steps, rate)}}."""
    found = {}
    for line in lines:
        if line["type"] == "runs":
            runs = found.setdefault((line["traitors"], line["scale"], line["tuned"]), {})
            runs[line["method"]] = np.array(line["objective"]), line["rate"]
    return found


def listed(names):
    """Write numbers that follow each other, and names among them, as "0 to 3, 14"."""
    runs = []
    for name in names:
        follows = runs and isinstance(name, int) and runs[-1][-1] == name - 1
        runs[-1:] = [[*runs[-1], name]] if follows else [*runs[-1:], [name]]
    return ", ".join(f"{run[0]} to {run[-1]}" if run[1:] else f"{run[0]}" for run in runs) or "none"


def show(lines, style):
    table, lost, lower = [], {(m, t): [] for t in TUNED for m in METHODS}, {(m, t): [] for t in TUNED for m in METHODS}
    for (traitors, scale, tuned), runs in sorted(cases(lines).items(), key=lambda case: TUNED.index(case[0][2])):
        last = {method: objective[:, -1] for method, (objective, _) in runs.items()}
        start = runs["vote"][0][:, 0]
        name = traitors if scale == 1 else f"one of {scale} times"
        ratio = median_interval(last["mean"] / last["vote"])
        better = "vote" if ratio.low > 1 else "mean" if ratio.high < 1 else "neither"
        lower.setdefault((better, tuned), []).append(name)
        for method in METHODS:
            lost[method, tuned] += [] if median_interval(last[method] / start).high < 1 else [name]
        cells = ["{:.3g} [{:.3g}, {:.3g}]".format(*median_interval(last[method])) for method in METHODS]
        table.append([name, tuned, *(rate for _, rate in runs.values()), *cells, better])
    print(f"f(x) after {STEPS} steps from {np.median(start):.0f}, {len(start)} seeds: median and its 95 % interval\n")
    headers = "traitors", "rate tuned for", *(f"rate of the {m}" for m in METHODS), *METHODS, "lower, in pairs"
    print(tabulate(table, headers, style, disable_numparse=[0]))
    steps = np.array(lines[0]["rates"])
    print(
        f"\nNot tuned for them are {LOST} traitors, who have the rates for {LOST - 1}, and the one of {SCALE} times, "
        f"who has those for none. The rates tried are a factor of {np.median(steps[1:] / steps[:-1]):.2g} apart."
    )
    for tuned in TUNED:
        said = "; ".join(f"{method} at {listed(names)}" for (method, t), names in lower.items() if t == tuned)
        fails = "; ".join(f"{method} at {listed(names)}" for (method, t), names in lost.items() if t == tuned)
        print(
            f"\nRate tuned for {tuned}, by the number of traitors. The lower end has: {said}. No descent has: {fails}."
        )
    # How much hangs on a choice that was nearly another: rates of the mean almost as good without traitors.
    tuned = {(line["method"], line["traitors"]): np.array(line["last"]) for line in lines if line["type"] == "tuning"}
    vote = tuned["vote", 0].argmin()
    for i in np.flatnonzero(tuned["mean", 0] <= 1.1 * tuned["mean", 0].min()):
        wins = [k for k in range(LOST) if tuned["vote", k][vote] < tuned["mean", k][i]]
        rate, end = lines[0]["rates"][i], tuned["mean", 0][i]
        print(f"\nSeeds of the tuning: without traitors the mean at rate {rate} ends at {end:.2g}, within 10 % of its "
              f"best; held, the vote's median is below the mean's at {listed(wins)} traitors.")  # fmt: skip


def draw(lines):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.8), layout="constrained")
    (over, of), found = figure.subplots(1, 2), cases(lines)
    for traitors, colour in zip((0, 6, 12, LOST - 1, LOST), ("C2", "C4", "C5", "C8", "C3"), strict=True):
        for (method, (objective, _)), dash in zip(found[traitors, 1, TUNED[0]].items(), "-:", strict=True):
            over.plot(lines[-1]["every"] * np.arange(objective.shape[1]), np.median(objective, axis=0), dash, c=colour,
                      label=f"{method}, {traitors} traitors")  # fmt: skip
    for i, (tuned, method) in enumerate(itertools.product(TUNED, METHODS)):
        kinds = [(traitors, scale) for traitors, scale, t in found if t == tuned]
        at = [(traitors if scale == 1 else LOST + 2) + (i - 1.5) / 6 for traitors, scale in kinds]
        middle, low, high = np.transpose([median_interval(found[(*kind, tuned)][method][0][:, -1]) for kind in kinds])
        of.errorbar(at, middle, (middle - low, high - middle), ms=4, elinewidth=1, fmt=METHODS[method], c=f"C{i % 2}",
                    mfc=None if tuned == TUNED[0] else "none", label=f"{method}, rate tuned for {tuned}")  # fmt: skip
    of.axhline(np.median(found[0, 1, TUNED[0]]["vote"][0][:, 0]), c="grey", ls="--", label="start")
    of.set_xticks([*range(LOST + 1), LOST + 2], [*map(str, range(LOST + 1)), f"one,\n{SCALE} times"], fontsize=8)
    of.set(yscale="log", xlabel=f"traitors, of {P} workers", title="at the end")
    of.set_ylabel(f"f(x) after {STEPS} steps, median and 95 % interval")
    over.set(yscale="log", ylim=(0.03, 3e4), xlabel="step", title=f"rate tuned for {TUNED[0]}")
    over.set_ylabel("f(x), median of the seeds")
    for axes in (over, of):
        axes.legend(fontsize=7, ncols=2)
    return figure


if __name__ == "__main__":
    keep_and_show("quadratic", __doc__, measure, show, draw)
