"""Does the vote withstand traitors, and what do the mean, Multi-Krum and the median do?

    python -m benchmarks.paper.robustness [--output FILE] [--figure FILE.svg]
    python -m benchmarks.paper.robustness --show FILE [--figure FILE.svg]

7 workers train the CNN of digits.py, 300 steps, 8 pictures a worker and step. In all methods a worker keeps the
momentum m <- 0.9 m + 0.1 g of its gradients (for the mean, the same as momentum at the server); methods differ in what
is made of the seven m: the majority of their signs (Signum), their mean, Multi-Krum for f = 2 (which needs
7 >= 2 f + 3) or their median. A traitor sends -m ("invert") or -100 m ("scale"), of an m of its own: it knows nothing
of the others, and does not aim at a rule. Each method's learning rate is tuned for each attack and each number of
traitors: where one fails, so did all rates in GRIDS. Methods are compared in pairs: a seed's first parameters and
mini-batches are the same for all.
"""

from functools import partial

import numpy as np
import torch
from tabulate import tabulate

from benchmarks.keep import keep_and_show
from benchmarks.paper import digits, tuning
from benchmarks.paper.rivals import coordinate_median, multi_krum
from mpisign.report.statistics import median_interval

P, B, STEPS, BETA, F = 7, 8, 300, 0.9, 2
SEEDS, TUNING_SEEDS = range(11), range(100, 103)
RULES = {"vote": digits.vote, "mean": lambda messages: messages.mean(1),
         "Multi-Krum": partial(multi_krum, f=F), "median": coordinate_median}  # fmt: skip
SIGN_GRID, DENSE_GRID = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1), (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
GRIDS = {name: SIGN_GRID if name == "vote" else DENSE_GRID for name in RULES}
FACTORS = {"invert": -1, "scale": -100}
ATTACKS = [("invert", traitors) for traitors in range(5)] + [("scale", traitors) for traitors in range(1, 4)]


def step_against(rule, factor, traitors, gradients, rate, state):
    """Make a step of momentum and `rule` where the first workers are traitors."""
    state["m"] = BETA * state["m"] + (1 - BETA) * gradients
    messages = state["m"].clone()
    messages[:, :traitors] *= factor
    return rate * rule(messages), 0


def measure():
    torch.set_num_threads(1)
    for attack, traitors in ATTACKS:
        for name, rule in RULES.items():
            method = partial(step_against, rule, FACTORS[attack], traitors)
            found = tuning.tune_and_train(digits, method, grid=GRIDS[name], tuning_seeds=TUNING_SEEDS, seeds=SEEDS,
                                          P=P, B=B, steps=STEPS)  # fmt: skip
            yield {"type": "robustness", "method": name, "attack": attack, "traitors": traitors, "rate": found["rate"],
                   "grid": found["grid"], "tuning_losses": found["tuning_losses"],
                   "accuracies": found["accuracies"][-1]}  # fmt: skip


def percents(lines):
    """Return {(attack, traitors, method): accuracy in % of each seed}."""
    return {(line["attack"], line["traitors"], line["method"]): 100 * np.array(line["accuracies"]) for line in lines}


def cells(lines):
    """Return {(attack, traitors, method): median accuracy in % and its interval}."""
    return {key: median_interval(values) for key, values in percents(lines).items()}


def show(lines, style):
    of_seeds, found, table = percents(lines), cells(lines), []
    for attack, k in ATTACKS:
        row = [found[attack, k, name] for name in RULES]
        table.append([attack if k else "none", k, *(f"{x:.1f} [{low:.1f}, {high:.1f}]" for x, low, high in row)])
    print(f"test accuracy in %, median of {len(lines[0]['accuracies'])} seeds [95 %]; {P} workers, {STEPS} steps\n")
    print(tabulate(table, ["attack", "traitors", *RULES], style, colalign=("left", *["right"] * 5)))
    by_vote = [found["invert", k, "vote"] for k in range(5)]
    print("\nThe vote with 0 to 4 inverting traitors:", ", ".join(f"{x.median:.1f}" for x in by_vote), end=" %; ")
    same = all((of_seeds["scale", k, "vote"] == of_seeds["invert", k, "vote"]).all() for k in range(1, 4))
    print(f"that they scale changes {'nothing' if same else 'it'}. By intervals of differences paired by seed:")
    for name in list(RULES)[1:]:
        more = {(attack, k): median_interval(of_seeds[attack, k, name] - of_seeds[attack, k, "vote"])
                for attack, k in ATTACKS}  # fmt: skip
        above = ", ".join(f"{attack} {k}" for (attack, k), by in more.items() if by.low > 0) or "none"
        below = ", ".join(f"{attack} {k}" for (attack, k), by in more.items() if by.high < 0) or "none"
        print(f"{name} is better than the vote at: {above}; worse at: {below}.")
    learnt = [line for line in lines if found[line["attack"], line["traitors"], line["method"]].low > 20]
    print(f"Of those that learn (more than 20 %): {tuning.at_edge(learnt)}")


def draw(lines):
    from matplotlib.figure import Figure

    ticks = [1, 2, 5, 10, 20, 50, 90]
    figure, found = Figure((10, 4.5), layout="constrained"), cells(lines)
    for axes, attack in zip(figure.subplots(1, 2, sharey=True), FACTORS, strict=True):
        keys = [("invert", 0)] + [(of, k) for of, k in ATTACKS if of == attack and k]
        for place, (name, marker) in enumerate(zip(RULES, "osD^", strict=True)):
            middle, low, high = 100 - np.transpose([found[(*key, name)] for key in keys])  # of the error, high < low
            x = np.arange(len(keys)) + (place - 1.5) / 7
            axes.errorbar(x, middle, (middle - high, low - middle), fmt=marker, markersize=5, capsize=3, label=name)
        axes.axhline(90, color="grey", linestyle=":", label="by chance")
        axes.set(xlabel=f"traitors of {P}, sending {FACTORS[attack]} x their momentum", xticks=range(len(keys)))
    figure.axes[0].set(ylabel="test error (%)", yscale="log", ylim=(1, 120))
    figure.axes[0].set_yticks([], minor=True)
    figure.axes[0].set_yticks(ticks, map(str, ticks))
    figure.axes[0].legend(loc="upper left", bbox_to_anchor=(0, 0.9))
    figure.suptitle("Median and 95 % interval over seeds")
    return figure


if __name__ == "__main__":
    keep_and_show("robustness", __doc__, measure, show, draw)
