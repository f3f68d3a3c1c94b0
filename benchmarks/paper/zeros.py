"""What should a worker vote where its momentum is exactly 0: +1, a coin, or nothing?

    python -m benchmarks.paper.zeros [--output FILE] [--figure FILE.svg]
    python -m benchmarks.paper.zeros --show FILE [--figure FILE.svg]

Three rules of zeros: "positive" is the paper's code, "random" an unbiased coin of each worker, coordinate and step,
"abstain" no vote: the majority is of the others, and where nobody votes the coordinate stays. Bits a coordinate, out
and back: 1 and 1 for the first two, 2 and 2 for abstention (a second ballot; a second row, of what stays).
Two problems: the embedding of tokens.py, where a worker meets few rows a step and some rows never occur, and the CNN of
digits.py, where fewer are exactly 0. Workers sign their momentum (beta 0.9) or their gradient (beta 0). Each case's
rate is tuned. An even vote's ties are +1 or a coin; weight decay multiplies weights by 1 - rate DECAY a step. Votes are
counted by plain torch.

The cases are no independent ones: they share two problems, the seeds, and in part all but a tie or a decay. The
intervals are over the seeds of the training. They have no room for the choice of a rate, by four other seeds, from a
grid of ratio 2.

Drift: how far a coordinate ends from its start, over the sum of all rates, which is the farthest it can go: the mean of
its size over the rows that never occur, and over the rarest third of the others; "one way" is the size of the mean.

The rule of the conclusion, written before the measurement. A case is a problem with its beta, workers, tie and decay.
A rule of zeros is better than another in a case if the 95 % interval of the median of their losses' difference, paired
by seed, is below 0; the loss is the test's for tokens, and the training's for digits, whose 360 test pictures tell too
little. Of "positive" and "random", which cost the same, the one that is better in more cases wins; if none is, the one
whose rows that never occur drift less. "abstain" doubles what all users send, so it becomes the default only if it is
better than the winner in more than half of all cases, and the advice for embeddings if it is in more than half of the
tokens'.
"""

from functools import partial

import numpy as np
import torch
from tabulate import tabulate

from benchmarks.keep import keep_and_show
from benchmarks.paper import digits, tokens, tuning
from mpisign.report.statistics import median_interval

STEPS, B, DECAY = 200, 8, 0.1
SEEDS, TUNING_SEEDS = range(12), range(100, 104)
ZEROS = {"positive": (1, 1), "random": (1, 1), "abstain": (2, 2)}  # bits a coordinate, out and back
PROBLEMS = {"tokens": tokens, "digits": digits}
LOSS = {"tokens": "test_losses", "digits": "losses"}
GRIDS = {"tokens": (0.01, 0.02, 0.04, 0.08, 0.16, 0.32), "digits": (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)}
VOTERS = [(1, "positive"), (4, "positive"), (4, "random"), (16, "positive"), (16, "random")]
CASES = [("tokens", beta, P, tie, 0.0) for beta in (0.9, 0.0) for P, tie in VOTERS]
CASES += [("tokens", beta, P, "positive", DECAY) for beta in (0.9, 0.0) for P in (1, 4, 16)]
CASES += [("digits", beta, P, "positive", 0.0) for beta in (0.9, 0.0) for P in (1, 4, 16)]
KEYS = "problem", "beta", "workers", "tie", "decay"


def toss(coins, shape):
    """Return as many unbiased coins of +1 and -1."""
    n = int(np.prod(shape))
    flips = np.unpackbits(np.frombuffer(coins.bytes(-(-n // 8)), np.uint8), count=n)
    return torch.from_numpy(flips).view(shape).float() * 2 - 1


def ballots(u, zeros, coins):
    """Return the workers' votes of +1, -1 and 0, which is none, on the signs of u, (R, P, n)."""
    votes = u.sign()
    if zeros == "abstain":
        return votes
    return torch.where(votes == 0, 1.0 if zeros == "positive" else toss(coins, u.shape), votes)


def majority(votes, tie, coins):
    """Return the majority of votes, (R, P, n), as (R, n) of +1 and -1, and 0 where nobody voted."""
    tally = votes.sum(1)
    broken = torch.where(tally == 0, 1.0 if tie == "positive" else toss(coins, tally.shape), tally.sign())
    return broken * votes.any(1)


def vote(gradients, rate, state, *, zeros, beta, tie):
    """Vote on the workers' momenta; state["zeros"] sums the share of the coordinates where a worker's is 0."""
    coins = state.setdefault("coins", np.random.default_rng(0))
    state["m"] = u = beta * state["m"] + (1 - beta) * gradients
    state["zeros"] += (u == 0).float().mean((1, 2))
    return rate * majority(ballots(u, zeros, coins), tie, coins), 0


def drift(problem, x, seeds, rate):
    """Return how far the rows that never occur, and the rare ones, have moved: a dict of (R,); without rows, empty."""
    if problem is not tokens:
        return {}
    moved = (x - problem.first_parameters(seeds))[:, : problem.SIZES[0]] / (rate * (STEPS + 1) / 2)
    never, rare = (moved.view(len(x), *problem.SHAPES[0])[:, rows].flatten(1) for rows in (problem.NEVER, problem.RARE))
    return {"never": never.abs().mean(1), "rare": rare.abs().mean(1), "one_way": rare.mean(1).abs()}


def learn(name, method, *, grid, P, decay):
    """Tune, train, and return a case's numbers."""
    problem, how = PROBLEMS[name], {"P": P, "B": B, "steps": STEPS, "decay": decay}
    rate, tuned = tuning.tune(problem, method, grid=grid, seeds=TUNING_SEEDS, **how)
    *_, (_, x, _, state) = tuning.train(problem, method, rates=[rate] * len(SEEDS), seeds=SEEDS, **how)
    ends = {**problem.evaluate(x), **drift(problem, x, SEEDS, rate)}
    if "zeros" in state:
        ends["share"] = state["zeros"] / STEPS
    return {"rate": rate, "grid": grid, "tuning_losses": tuned} | {key: tuning.short(of) for key, of in ends.items()}


def measure():
    torch.set_num_threads(1)
    for case in CASES:
        name, beta, P, tie, decay = case
        for zeros in ZEROS:
            method = partial(vote, zeros=zeros, beta=beta, tie=tie)
            found = learn(name, method, grid=GRIDS[name], P=P, decay=decay)
            yield {"type": "zeros", "method": zeros, **dict(zip(KEYS, case, strict=True)), **found}


def differences(lines):
    """Return {(case, one, other): the interval of one's loss less the other's, seed by seed} of all pairs."""
    losses = {(tuple(line[key] for key in KEYS), line["method"]): np.array(line[LOSS[line["problem"]]])
              for line in lines}  # fmt: skip
    return {(case, one, other): median_interval(losses[case, one] - losses[case, other])
            for case in CASES for one in ZEROS for other in ZEROS if one != other}  # fmt: skip


def conclude(between, drifts):
    """Return the default by the head's rule, whether embeddings are advised to abstain, and what was counted.

    `between` is what `differences` returns; `drifts` is {rule: how far the rows that never occur drift}.
    """

    def better(one, other, problems=tuple(PROBLEMS)):
        return sum(between[case, one, other].high < 0 for case in CASES if case[0] in problems)

    wins = {pair: better(*pair) for pair in (("random", "positive"), ("positive", "random"))}
    cheap = max(("positive", "random"), key=drifts.get)
    cheap = "random" if cheap == "positive" else "positive"
    if len(set(wins.values())) > 1:
        cheap = max(wins, key=wins.get)[0]
    counts = {name: (better("abstain", cheap, (name,)), better(cheap, "abstain", (name,)),
                     sum(case[0] == name for case in CASES)) for name in PROBLEMS}  # fmt: skip
    default = "abstain" if sum(count[0] for count in counts.values()) > len(CASES) / 2 else cheap
    return default, counts["tokens"][0] > counts["tokens"][2] / 2, wins, cheap, counts


def cell(values, form, scale=1):
    x, low, high = (format(scale * value, form) for value in median_interval(values))
    return f"{x} [{low}, {high}]"


def rows(lines, between):
    """Return the table's rows: all rules of zeros of a case below each other."""
    for line in lines:
        case, versus = tuple(line[key] for key in KEYS), ""
        if line["method"] != "positive":
            x, low, high = between[case, line["method"], "positive"]
            versus = f"{x:+.3f} [{low:+.3f}, {high:+.3f}]"
        shown = [format(np.median(line[key]), ".2f") if key in line else ""
                 for key in ("share", "never", "rare", "one_way")]  # fmt: skip
        yield [*case, line["method"], f"{line['rate']:g}", cell(line[LOSS[line["problem"]]], ".3g"), versus,
               cell(line["accuracies"], ".1f", 100), *shown]  # fmt: skip


def show(lines, style):
    between = differences(lines)
    bits = ", ".join("{} {} and {}".format(name, *both) for name, both in ZEROS.items())
    print(f"after {STEPS} steps, medians of {len(SEEDS)} seeds [95 %]; the loss is the test's for tokens and the "
          f"training's for digits; bits a coordinate, out and back: {bits}\n")  # fmt: skip
    headers = [*KEYS, "zeros", "rate", "loss", "loss less that of positive", "test accuracy %", "share of zeros",
               "drift: never", "rare", "rare, one way"]  # fmt: skip
    align = ["left", *["right"] * 2, "left", "right", "left", *["right"] * 8]
    print(tabulate(rows(lines, between), headers, style, disable_numparse=True, colalign=align))
    drifts = {name: np.median([line["never"] for line in lines if line["method"] == name and "never" in line])
              for name in ZEROS}  # fmt: skip
    default, advised, wins, cheap, counts = conclude(between, drifts)
    print(f"\n{tuning.at_edge(lines)}\nBy intervals of paired differences:")
    told = ", ".join(f"{one} better than {other} in {count}" for (one, other), count in wins.items())
    print(f"Of all {len(CASES)} cases: {told}.")
    print(f"(An interval leaves out 0 by chance in at most 5 % of cases that are alike: {0.05 * len(CASES):.1f} of "
          f"{len(CASES)}; and the cases are not independent.)")  # fmt: skip
    for name, (better, worse, of) in counts.items():
        print(f"{name}: abstain better than {cheap} in {better} of {of}, worse in {worse}.")
    far = ", ".join(f"{distance:.2f} ({name})" for name, distance in drifts.items())
    print(f"Rows that never occur drift by {far}, medians.")
    print(f"\nSo by the rule in the file's head the default is {default!r}; for embeddings 'abstain' is"
          f"{'' if advised else ' not'} advised: see by beta, below, where it was better.")  # fmt: skip
    break_down(lines, between)


def break_down(lines, between):
    """Say what the rule does not ask: where abstention helps, and what a coin for ties does for the rows in reserve."""
    for beta in (0.9, 0.0):
        cases = [case for case in CASES if case[:2] == ("tokens", beta)]
        told = (f"{one} better than {other} in {sum(between[case, one, other].high < 0 for case in cases)}"
                for one, other in (("random", "positive"), ("abstain", "random"), ("random", "abstain")))  # fmt: skip
        print(f"\nOf the {len(cases)} cases of tokens at beta {beta:g}: {', '.join(told)}.")
    drifts = [np.median([line["never"] for line in lines if (line["method"], line["tie"]) == ("random", tie)
                         and line["workers"] > 1 and line["decay"] == 0 and "never" in line])
              for tie in ("positive", "random")]  # fmt: skip
    print("\nWith coins for zeros and an even number of workers, rows that never occur drift by {:.2f} where ties are "
          "+1, and by {:.2f} where they are coins.".format(*drifts))  # fmt: skip


def draw(lines):
    from matplotlib.figure import Figure

    figure = Figure((12, 8), layout="constrained")
    panels = figure.subplots(2, 2, sharex="col", width_ratios=(16, 6))
    for column, name in zip(panels.T, PROBLEMS, strict=True):
        cases = [case for case in CASES if case[0] == name]
        for place, (zeros, marker) in enumerate(zip(ZEROS, "osD", strict=True)):
            mine = [next(line for line in lines if line["method"] == zeros and tuple(line.get(k) for k in KEYS) == case)
                    for case in cases]  # fmt: skip
            x = np.arange(len(cases)) + (place - 1) / 5
            for axes, key in zip(column, (LOSS[name], "rare"), strict=True):
                values = [line.get(key) for line in mine]
                if None not in values:
                    middle, low, high = np.transpose([median_interval(of) for of in values])
                    axes.errorbar(x, middle, (middle - low, high - middle), fmt=marker, ms=5, capsize=2, label=zeros)
        labels = [f"{P} w, tie {tie[:3]}.\nbeta {beta:g}{', decay' * (decay > 0)}" for _, beta, P, tie, decay in cases]
        column[0].set(title=name, ylabel=f"{'test' if name == 'tokens' else 'training'} loss (nats)", yscale="log")
        column[1].set_xticks(range(len(cases)), labels, rotation=90, fontsize=7)
    panels[1, 0].set(ylabel="drift of the rare rows, of the farthest they can go")
    panels[1, 1].set(yticks=[])
    panels[0, 0].legend()
    figure.suptitle("Median and 95 % interval over seeds")
    return figure


if __name__ == "__main__":
    keep_and_show("zeros", __doc__, measure, show, draw)
