"""Train many runs of many workers at once, in one process, each method at the best rate of its grid.

A problem is a module, digits.py or tokens.py: `first_parameters(seeds)` (R, n), `sample(coins, P, B)` a run's
mini-batches of one step, `gradients(x, sampled)` (R, P, n), and `evaluate(x)`, a dict of values (R,) each: "losses",
which rates are tuned by, and what is kept beside them. R runs, P workers, B samples of a worker's mini-batch, n
parameters. A run's seed decides its draws and its first parameters.
"""

import itertools
from collections import defaultdict

import numpy as np
import torch

WORST = 99.0  # what a loss above it, or none at all, is kept as


def train(problem, method, *, rates, seeds, P, B, steps, stops=(), decay=0.0):
    """Train one run for each pair of a rate and a seed; yield (step, x, bytes so far, state) at the stops.

    `method(gradients, rate, state)` returns what to subtract, (R, n), and a worker's bytes of this step, (R,) or one
    number; `state` is its own, of 0.0 where nothing was kept. Rates fall to 0 along a line. A step also takes `decay`
    times the rate times x from x, (R, n). The last step is a stop.
    """
    x, state, sent = problem.first_parameters(seeds), defaultdict(float), torch.zeros(len(seeds))
    draws, rates = [np.random.default_rng(seed) for seed in seeds], torch.tensor(rates)[:, None]
    for step in range(steps + 1):
        if step in stops or step == steps:
            yield step, x, sent, state
        if step < steps:
            sampled, rate = torch.stack([problem.sample(coins, P, B) for coins in draws]), rates * (1 - step / steps)
            change, size = method(problem.gradients(x, sampled), rate, state)
            x, sent = (1 - decay * rate) * x - change, sent + size


def tune(problem, method, *, grid, seeds, **how):
    """Return the rate of `grid` with the least median loss at the end, and the median losses of all, a list."""
    pairs = [(rate, seed) for rate in grid for seed in seeds]
    rates, seeds = map(list, zip(*pairs, strict=True))
    *_, (_, x, _, _) = train(problem, method, rates=rates, seeds=seeds, **how)
    medians = np.median(problem.evaluate(x)["losses"].reshape(len(grid), -1), 1)
    return grid[int(medians.argmin())], short(medians)


def tune_and_train(problem, method, *, grid, tuning_seeds, seeds, stops=(), **how):
    """Take the best rate of `grid` and train with it; return all as a dict, its lists a row a stop.

    The tuning has seeds of its own and sees nothing that is for testing.
    """
    rate, tuning = tune(problem, method, grid=grid, seeds=tuning_seeds, **how)
    found = {"rate": rate, "grid": list(grid), "tuning_losses": tuning, "steps": [], "bytes": []}
    for step, x, sent, _ in train(problem, method, rates=[rate] * len(seeds), seeds=seeds, stops=stops, **how):
        found["steps"].append(step)
        found["bytes"].append([round(size) for size in sent.tolist()])
        for name, values in problem.evaluate(x).items():
            found.setdefault(name, []).append(short(values))
    return found


def short(values):
    """Round to four significant digits."""
    return [float(f"{value:.4g}") for value in values]


def at_edge(lines):
    """Say for how many lines the rate taken is the smallest or largest of its grid, and how coarse the grids are."""
    edge = sum(line["rate"] in (min(line["grid"]), max(line["grid"])) for line in lines)
    apart = [f"{b / a:.1f}" for line in lines for a, b in itertools.pairwise(line["grid"])]
    return (f"The rate taken is at an end of its grid in {edge} of {len(lines)} cases; rates tried are a factor of "
            f"{' or '.join(sorted(set(apart)))} apart.")  # fmt: skip
