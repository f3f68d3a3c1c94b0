"""Which rule of what a worker signs learns best, and at what rate next to Adam's?

    python -m benchmarks.paper.rules [--output FILE] [--figure FILE.svg]
    python -m benchmarks.paper.rules --show FILE [--figure FILE.svg]

The rules of mpisign.coding.rules, by plain torch: Signum(0.9), SignSGD, Lion(0.9, 0.99), Noisy (of Signum) and
Stochastic (of SignSGD), next to Adam and SGD with momentum on the mean gradient. A worker votes by a coin where what it
signs is exactly 0, under every rule: the dither of two of them does so anyway, and zeros.py asks what that is worth.
Ties are +1. The embedding of tokens.py and the CNN of digits.py, mini-batches of 8 a worker, rates that fall to 0; the
usual 200 steps, and 800 for Signum, Adam and SGD alone, on tokens with 4 workers. Each rate is tuned, on a grid of
ratio 2 ** 0.5; with a dither, on a grid of ratio 2 for each of its three sizes, of which the best is taken. Two seeds
tune: a rate is known no closer than a step of its grid. The momentum of SGD is m <- 0.9 m + 0.1 g: PyTorch's
SGD(momentum=0.9) has a tenth of the rate for the same steps.

The rule of the conclusion, written before the measurement. A rule is better than Signum in a case, which is a problem
with its number of workers, if the 95 % interval of the median of their losses' difference, paired by seed, is below 0;
the loss is the test's for tokens and the training's for digits. A rule that is better in more than half of the cases is
advised instead of Signum. The advice on rates is the range of Signum's rate over Adam's, and its median.
"""

from functools import partial

import numpy as np
import torch
from tabulate import tabulate

from benchmarks.keep import keep_and_show
from benchmarks.paper import tuning
from benchmarks.paper.convergence import BETA, adam, sgd
from benchmarks.paper.zeros import LOSS, PROBLEMS, cell, majority, toss
from mpisign import Lion, Noisy, SignSGD, Signum, Stochastic
from mpisign.coding.rules import BYTES, NORMAL_MEAN, NORMAL_UNIT, PAIRS, UNIFORM_MEAN, UNIFORM_UNIT
from mpisign.report.statistics import median_interval

B, STEPS, LONG = 8, 200, 800
SEEDS, TUNING_SEEDS = range(9), range(100, 102)
RULES = {"Signum": [Signum()], "SignSGD": [SignSGD()], "Lion": [Lion()],
         "Noisy": [Noisy(size) for size in (1e-4, 1e-3, 1e-2)],
         "Stochastic": [Stochastic(size) for size in (3e-4, 3e-3, 3e-2)]}  # fmt: skip
DENSE = {"Adam": adam, "SGD": sgd}
METHODS = [*RULES, *DENSE]
CASES = [(name, P, STEPS) for name in PROBLEMS for P in (1, 4, 16)]
LONG_CASES, LONG_METHODS = [("tokens", 4, LONG)], ("Signum", "Adam", "SGD")
PLAN = [(case, method) for cases, methods in ((CASES, METHODS), (LONG_CASES, LONG_METHODS)) for case in cases
        for method in methods]  # fmt: skip
KEYS = "problem", "workers", "steps"
LOWEST = {
    "tokens": {"Adam": 0.02, "SGD": 2.0, "Stochastic": 0.02},
    "digits": {"Adam": 0.003, "SGD": 0.15, "Stochastic": 0.002},
}
LOWEST_VOTE = {"tokens": 0.01, "digits": 0.001}  # of all other rules


def dither(rule, shape, coins):
    """Return the rule's dither, float32, as mpisign.coding.rules defines it, of 64 bits a coordinate."""
    x = np.frombuffer(coins.bytes(8 * int(np.prod(shape))), np.uint64).reshape(shape)
    if rule.dither == "uniform":
        return torch.from_numpy((x >> 40).astype(np.float32)) * UNIFORM_UNIT - UNIFORM_MEAN
    pairs = (x & BYTES) + (x >> 8 & BYTES)
    return (torch.from_numpy((pairs * PAIRS >> 48).astype(np.float32)) - NORMAL_MEAN) * NORMAL_UNIT


def vote(rule, gradients, rate, state):
    """Vote by a rule: sign its mean of momentum and gradient, and its dither; see mpisign.Rule."""
    coins, m = state.setdefault("coins", np.random.default_rng(0)), state["m"]
    u = rule.vote * m + (1 - rule.vote) * gradients
    state["m"] = rule.keep * m + (1 - rule.keep) * gradients
    signed = u + rule.scale * dither(rule, u.shape, coins) if rule.dither else u
    votes = torch.where(u == 0, toss(coins, u.shape), torch.where(signed < 0, -1.0, 1.0))
    return rate * majority(votes, "positive", coins), 0


def grid_of(name, method):
    """Return the rates to try, 45 times as large at the end as at the beginning."""
    dithered = method in RULES and len(RULES[method]) > 1
    lowest = LOWEST[name].get(method, LOWEST_VOTE[name])
    return tuning.short(lowest * 2 ** (np.arange(0, 12, 1 + dithered) / 2))


def learn(name, method, P, steps):
    """Tune the rate, and the dither's size, and train; return the numbers."""
    problem, how, grid = PROBLEMS[name], {"P": P, "B": B, "steps": steps}, grid_of(name, method)
    tried = [(rule.scale, partial(vote, rule)) for rule in RULES.get(method, ())] or [(0.0, DENSE[method])]
    tuned = [tuning.tune(problem, step, grid=grid, seeds=TUNING_SEEDS, **how) for _, step in tried]
    best = min(range(len(tried)), key=lambda which: min(tuned[which][1]))
    (scale, step), (rate, losses) = tried[best], tuned[best]
    *_, (_, x, _, _) = tuning.train(problem, step, rates=[rate] * len(SEEDS), seeds=SEEDS, **how)
    ends = {key: tuning.short(of) for key, of in problem.evaluate(x).items()}
    return {
        "scale": scale,
        "scales": [size for size, _ in tried],
        "rate": rate,
        "grid": grid,
        "tuning_losses": losses,
    } | ends


def measure():
    torch.set_num_threads(1)
    for case, method in PLAN:
        about = {"type": "rules", "method": method, **dict(zip(KEYS, case, strict=True))}
        yield about | learn(case[0], method, *case[1:])


def by_case(lines):
    """Return {(case, method): line}."""
    return {(tuple(line[key] for key in KEYS), line["method"]): line for line in lines}


def less(found, case, one, other):
    """Return the interval of one's loss less the other's, seed by seed."""
    first, second = (np.array(found[case, method][LOSS[case[0]]]) for method in (one, other))
    return median_interval(first - second)


def fussy(line):
    """Return the tuning losses at half the rate that was taken and at twice, over the loss at it; NaN off the grid."""
    at, losses = line["grid"].index(line["rate"]), line["tuning_losses"]
    step = round(np.log(2) / np.log(line["grid"][1] / line["grid"][0]))
    return [losses[i] / losses[at] if 0 <= i < len(losses) else np.nan for i in (at - step, at + step)]


def rows(found):
    for (case, method), line in found.items():
        versus = ""
        if method != "Signum":
            versus = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*less(found, case, method, "Signum"))
        ratio = line["rate"] / found[case, "Adam"]["rate"]
        yield [*case, method, f"{line['scale']:g}" if line["scale"] else "", f"{line['rate']:.2g}", f"{ratio:.2g}",
               cell(line[LOSS[case[0]]], ".3g"), versus, cell(line["accuracies"], ".1f", 100)]  # fmt: skip


def said(values):
    return f"{min(values):.2g} to {max(values):.2g}, median {np.median(values):.2g}"


def show(lines, style):
    found = by_case(lines)
    print(f"medians of {len(SEEDS)} seeds [95 %]; the loss is the test's for tokens, the training's for digits\n")
    headers = [
        *KEYS,
        "rule",
        "dither",
        "rate",
        "rate over Adam's",
        "loss",
        "loss less that of Signum",
        "test accuracy %",
    ]
    align = ["left", *["right"] * 2, "left", *["right"] * 6]
    print(tabulate(rows(found), headers, style, disable_numparse=True, colalign=align))
    print(f"\n{tuning.at_edge(lines)} By intervals of paired differences, which have no room for the rate's choice:")
    for method in METHODS[1:]:
        better, worse = ([case[0] for case in CASES if less(found, case, *pair).high < 0]
                         for pair in ((method, "Signum"), ("Signum", method)))  # fmt: skip
        where = ", ".join(f"{name} {better.count(name)}" for name in PROBLEMS if better)
        advised = method in RULES and len(better) > len(CASES) / 2
        print(f"{method} is better than Signum in {len(better)} of {len(CASES)} cases{f' ({where})' if where else ''}, "
              f"worse in {len(worse)}"
              f"{'; it is advised' if advised else ''}.")  # fmt: skip
    for method in (method for method in RULES if len(RULES[method]) > 1):
        least = [line["scale"] == min(line["scales"]) for line in lines if line["method"] == method]
        print(f"Of three sizes of the dither of {method} the smallest is taken in {sum(least)} of {len(least)} cases.")
    advise_rates(found)


def advise_rates(found):
    """Say how large Signum's rate is next to Adam's and SGD's, what it grows and falls with, and how fussy it is."""
    every = [*CASES, *LONG_CASES]
    rates = {method: {case: found[case, method]["rate"] for case in every} for method in LONG_METHODS}
    scales = {"Adam": ("Adam's", 1), "SGD": ("that of PyTorch's SGD(momentum=0.9)", 1 - BETA)}
    for rival, (whose, scale) in scales.items():
        ratios = said([rates["Signum"][case] / (scale * rates[rival][case]) for case in every])
        print(f"\nSignum's rate over {whose}, {len(every)} cases:", ratios)
    grid = found[every[0], "Signum"]["grid"]
    step, seeds = grid[1] / grid[0], len(TUNING_SEEDS)
    print(f"\nA factor of {step:.2g} in a rate is one step of the grid, and {seeds} seeds choose.")
    for method, of in rates.items():
        growth = [of[name, 16, STEPS] / of[name, 1, STEPS] for name in PROBLEMS]
        longer = of["tokens", 4, LONG] / of["tokens", 4, STEPS]
        print(f"\n{method}'s rate is " + "{:.2g} (tokens) and {:.2g} (digits) times".format(*growth),
              f"as large with 16 workers as with 1, and {longer:.2g} times as large for {LONG} steps as for {STEPS} "
              "(tokens, 4 workers).")  # fmt: skip
    costs = ("{} {:.2f} and {:.2f}".format(method, *np.nanmedian([fussy(found[case, method]) for case in every], 0))
             for method in LONG_METHODS)  # fmt: skip
    print("\nThe loss at half and at twice the best rate, over the loss at it, on the seeds that chose it, medians of "
          "all cases:", ", ".join(costs))  # fmt: skip


def draw(lines):
    from matplotlib.figure import Figure

    figure, found = Figure((13, 7), layout="constrained"), by_case(lines)
    panels = figure.subplots(2, 3, sharex="row", sharey="row")
    for axes, case in zip(panels.flat, CASES, strict=True):
        for method, marker in zip(METHODS, "osD^vxP", strict=True):
            line = found[case, method]
            axes.loglog(line["grid"], line["tuning_losses"], marker=marker, ms=4, lw=1, label=method)
        axes.set(title=f"{case[0]}, workers: {case[1]}", xlabel="rate")
    for row, name in zip(panels, PROBLEMS, strict=True):
        row[0].set_ylim(top=3)  # all have drawn: the lower end is what they need
        row[0].set_ylabel(f"{'held-out' if name == 'tokens' else 'training'} loss (nats)")
    panels[0, 0].legend(fontsize="small", loc="upper left")
    figure.suptitle(f"The loss after {STEPS} steps at each rate, median over the seeds that tune it")
    return figure


if __name__ == "__main__":
    keep_and_show("rules", __doc__, measure, show, draw)
