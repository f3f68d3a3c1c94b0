"""How far do training loss and test accuracy get, per step and per byte, next to Adam, SGD, QSGD and error feedback?

    python -m benchmarks.paper.convergence [--output FILE] [--figure FILE.svg]
    python -m benchmarks.paper.convergence --show FILE [--figure FILE.svg]

The CNN of digits.py, n = 5050, 200 steps, at 1, 4 and 16 workers, with mini-batches of 8 and large ones of 64 a
worker; rates are tuned for each method, number of workers and batch, for the training loss at the end, not for the
steps to GOAL. Momentum is 0.9: the worker's own for Signum and EF-sign, else after the mean; signSGD has none. It is
m <- 0.9 m + 0.1 g: PyTorch's SGD(momentum=0.9) has a tenth of the rate for the same steps. An even vote's ties are +1.

Runs are looked at before the steps STOPS alone, so that GOAL is reached is known no finer than from one look to the
next. Methods are compared in pairs: a seed's first parameters and mini-batches are the same for all.

Bytes are what a worker sends to a server and receives from it. Vote (signSGD, Signum): ceil(n / 64) * 8 each way.
Dense (Adam, SGD): 4 n each way, fp32. QSGD (7 levels, buckets of 512): the size of its Elias gamma codes and signs, and
4 a bucket; one-way is answered by a dense 4 n, two-way quantises the mean again. EF-sign: ceil(n / 8) + 4 each way, for
the server feeds back its own error too (Zheng et al. 2019, arXiv 1905.10936).
"""

from functools import partial

import numpy as np
import torch
from tabulate import tabulate

from benchmarks.keep import keep_and_show
from benchmarks.paper import digits, tuning
from benchmarks.paper.digits import N
from benchmarks.paper.rivals import qsgd, sign_with_feedback
from mpisign.coding.sizes import words_for
from mpisign.report.statistics import median_interval

BETA, STEPS, STOPS = 0.9, 200, (0, 2, 4, 7, 10, 14, 20, 28, 40, 56, 80, 112, 150)
SEEDS, TUNING_SEEDS, CELLS = range(6), range(100, 102), [(B, P) for B in (8, 64) for P in (1, 4, 16)]
VOTE, DENSE, EF, LEVELS, BUCKET, GOAL = 8 * words_for(N), 4 * N, -(-N // 8) + 4, 7, 512, 90  # the goal: % right
SMALL, LARGE = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1), (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


def average(state, name, new, beta=BETA):
    state[name] = beta * state[name] + (1 - beta) * new
    return state[name]


def signsgd(gradients, rate, state):
    return rate * digits.vote(gradients), 2 * VOTE


def signum(gradients, rate, state):
    return rate * digits.vote(average(state, "m", gradients)), 2 * VOTE


def sgd(gradients, rate, state):
    return rate * average(state, "m", gradients.mean(1)), 2 * DENSE


def adam(gradients, rate, state):
    g, state["t"] = gradients.mean(1), state["t"] + 1
    m = average(state, "m", g) / (1 - BETA ** state["t"])
    v = average(state, "v", g**2, 0.999) / (1 - 0.999 ** state["t"])
    return rate * m / (v.sqrt() + 1e-8), 2 * DENSE


def quantised(gradients, rate, state, two_way):
    coins = state.setdefault("coins", torch.Generator().manual_seed(0))
    messages, bits = qsgd(gradients, LEVELS, BUCKET, coins)
    mean, back = messages.mean(1), torch.tensor(8.0 * DENSE)
    if two_way:
        mean, back = qsgd(mean, LEVELS, BUCKET, coins)
    return rate * average(state, "m", mean), (bits / 8).ceil().mean(1) + (back / 8).ceil()


def ef_sign(gradients, rate, state):
    messages, state["e"] = sign_with_feedback(rate[..., None] * average(state, "m", gradients), state["e"])
    answer, state["server"] = sign_with_feedback(messages.mean(1), state["server"])
    return answer, 2 * EF


METHODS = {
    "signSGD vote": (signsgd, SMALL),
    "Signum vote": (signum, SMALL),
    "EF-sign": (ef_sign, LARGE),
    "QSGD two-way": (partial(quantised, two_way=True), LARGE),
    "QSGD one-way": (partial(quantised, two_way=False), LARGE),
    "SGD": (sgd, LARGE),
    "Adam": (adam, SMALL),
}
PANELS = ("steps", "losses", 1), ("steps", "accuracies", 100), ("kB", "losses", 1), ("kB", "accuracies", 100)


def measure():
    torch.set_num_threads(1)
    for B, P in CELLS:
        for name, (method, grid) in METHODS.items():
            found = tuning.tune_and_train(digits, method, grid=grid, tuning_seeds=TUNING_SEEDS, seeds=SEEDS,
                                          P=P, B=B, steps=STEPS, stops=STOPS)  # fmt: skip
            yield {"type": "convergence", "method": name, "workers": P, "batch": B, **found}


def reaching(line):
    """Return the steps and the bytes at the first look that finds GOAL, and the first step behind the look before.

    All (seeds,); infinite where no look finds GOAL. Since that step GOAL may have been there.
    """
    there, steps = 100 * np.array(line["accuracies"]) >= GOAL, np.array(line["steps"])
    first, seeds = there.argmax(0), np.arange(there.shape[1])
    values = steps[first], np.array(line["bytes"])[first, seeds], steps[np.maximum(first - 1, 0)] + 1
    return np.where(there.any(0), values, np.inf)


def numbers(line):
    """Return what is said of a line, (seeds,) each."""
    look, size, earliest = reaching(line)
    return {"accuracy": 100 * np.array(line["accuracies"][-1]), "loss": np.array(line["losses"][-1]), "look": look,
            "size": size, "earliest": earliest, "sent": np.array(line["bytes"][-1])}  # fmt: skip


def show(lines, style):
    keys = [(line["batch"], line["workers"], line["method"]) for line in lines]
    found, table = dict(zip(keys, map(numbers, lines), strict=True)), []
    for key, rate in zip(keys, (line["rate"] for line in lines), strict=True):
        line = found[key]
        loss, end = "{:.2g} [{:.2g}, {:.2g}]", "{:.1f} [{:.1f}, {:.1f}]"
        loss, end = loss.format(*median_interval(line["loss"])), end.format(*median_interval(line["accuracy"]))
        steps, size = np.median(line["look"]), np.median(line["size"])
        table.append([*key, f"{rate:g}", loss, end, f"{steps:.0f}", f"{size / 1e3:.0f}"])
    about = f"after {STEPS} steps, medians of {len(SEEDS)} seeds [95 %]"
    print(f"{about}; steps, and kB a worker (sent and received), to the first look that finds {GOAL} %\n")
    headers = "batch", "workers", "method", "rate", "training loss", "test accuracy %", "steps to {} %", "kB to {} %"
    headers, align = [header.format(GOAL) for header in headers], ["right"] * 2 + ["left"] + ["right"] * 5
    print(tabulate(table, headers, style, disable_numparse=True, colalign=align))
    print(f"\n{tuning.at_edge(lines)}")
    for pair in (("Signum vote", "SGD"), ("Signum vote", "Adam"), ("signSGD vote", "SGD")):
        print(compare(found, *pair))
    sizes = np.array([[np.median(found[(*cell, name)]["size"]) for name in METHODS] for cell in CELLS])
    least = dict(zip(METHODS, (sizes == sizes.min(1, keepdims=True)).sum(0), strict=True))
    print(
        f"Fewest bytes to the first look at {GOAL} %, or tied, by medians alone:",
        ", ".join(f"{name} in {k} of {len(CELLS)} cells" for name, k in least.items() if k),
    )


def compare(found, one, other):
    """Say how `one` stands to `other` over the cells, and in steps to GOAL what the looks leave open."""
    a, b = ({what: np.array([found[(*cell, name)][what] for cell in CELLS]) for what in found[(*CELLS[0], name)]}
            for name in (one, other))  # fmt: skip

    def more(ours, theirs):  # by the interval of paired differences, in how many cells
        return sum(median_interval(pairs).low > 0 for pairs in ours - theirs)

    def ratios(ours, theirs):
        return np.median(ours, 1) / np.median(theirs, 1)

    looks = ratios(a["look"], b["look"])
    low, high = ratios(a["earliest"], b["look"]).min(), ratios(a["look"], b["earliest"]).max()
    return (
        f"{one} next to {other}, in {len(CELLS)} cells, by intervals of differences paired by seed: test accuracy "
        f"better in {more(a['accuracy'], b['accuracy'])}, worse in {more(b['accuracy'], a['accuracy'])}; training "
        f"loss lower in {more(b['loss'], a['loss'])}, higher in {more(a['loss'], b['loss'])}; steps to the first look "
        f"at {GOAL} % fewer in {more(b['look'], a['look'])}, more in {more(a['look'], b['look'])}. These steps are "
        f"{looks.min():.2f} to {looks.max():.2f} times as many; that {GOAL} % may have been there since the look "
        f"before leaves room for {low:.2f} to {high:.2f}. A step takes 1/{np.median(b['sent'] / a['sent']):.0f} of the "
        "bytes."
    )


def draw(lines):
    from matplotlib.figure import Figure

    figure = Figure((13, 16), layout="constrained")
    grid = figure.subplots(len(CELLS), len(PANELS), sharex="col", sharey="col")
    for row, cell in zip(grid, CELLS, strict=True):
        row[0].set_title("batch {}, workers: {}".format(*cell), loc="left", fontweight="bold")
        for line in (line for line in lines if (line["batch"], line["workers"]) == cell):
            over = {"steps": np.array(line["steps"]), "kB": np.median(line["bytes"], 1) / 1e3}
            for axes, (x, what, unit) in zip(row, PANELS, strict=True):
                curve = unit * np.array([median_interval(values) for values in line[what]])
                shown = slice(x == "kB", None)  # a logarithmic axis has no place for 0 bytes
                (drawn,) = axes.plot(over[x][shown], curve[shown, 0], label=line["method"])
                axes.fill_between(over[x][shown], *curve[shown, 1:].T, color=drawn.get_color(), alpha=0.15, linewidth=0)
    for column, (x, what, _) in zip(grid.T, PANELS, strict=True):
        column[0].set(xscale="log" if x == "kB" else "linear", yscale="log" if what == "losses" else "linear")
        column[-1].set_xlabel("step" if x == "steps" else "kB a worker, sent and received")
        if what == "losses":
            column[0].set_ylim(bottom=1e-6)
        for axes in column:
            axes.minorticks_off()
            axes.set_ylabel("training loss (nats)" if what == "losses" else "test accuracy (%)")
    grid[0, 0].legend(fontsize="small")
    figure.suptitle("Median and 95 % interval over seeds")
    return figure


if __name__ == "__main__":
    keep_and_show("convergence", __doc__, measure, show, draw)
