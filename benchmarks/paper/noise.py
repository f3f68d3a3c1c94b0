"""Is the noise of gradients unimodal and symmetric, as the vote's theory wants it? A small network on real digits.

    python -m benchmarks.paper.noise [--output FILE] [--figure FILE.svg]
    python -m benchmarks.paper.noise --show FILE

Lemma 1 of arXiv 1810.05291: where a coordinate's noise is unimodal and symmetric about its mean, and S = |mean| / std,
its sign is wrong with probability at most 2 / (9 S^2) if S > 2 / sqrt(3), else 1/2 - S / (2 sqrt(3)).
One small network is trained by Signum's vote of three workers on scikit-learn's 1797 scanned digits. At a few moments,
DRAWS mini-batches at fixed weights, drawn without replacement from all pictures, give every coordinate's distribution;
its mean is known, from all pictures. Coordinates that are 0 in every draw are dead and counted apart. Of the others:

skewed: the third central moment is not 0, by its own robust standard error: no normal distribution is assumed.
two modes: the histogram between the 1st and 99th percentile has a valley, deeper against its counting noise than those
of uniform draws, which stand for all unimodal ones, as in Hartigan's dip test.
above the bound: the sign that a worker votes by one mini-batch, where exactly 0 is +1, is the mean's opposite more
often than Lemma 1 allows, by a binomial test.

Each is tested at a false discovery rate of 5 % (Benjamini & Hochberg, who take the tests for independent: coordinates
of a network are not) among a moment's living coordinates. The same tests on as many normal draws say how often they
err there; how often they do on unimodal, symmetric draws with heavier tails was not tried.
"""

import itertools

import numpy as np
import scipy
import sklearn
import torch
from scipy import stats
from sklearn.datasets import load_digits
from tabulate import tabulate
from torch import nn
from torch.func import functional_call, grad, vmap

from benchmarks.keep import keep_and_show
from mpisign import Signum, majority, unpack
from mpisign.coding import bits
from mpisign.coding.sizes import words_for
from mpisign.report.statistics import median_interval

MOMENTS, PORTRAYED = (0, 10, 30, 100, 300, 1000), (0, 100, 1000)  # steps of training
SEEDS, BATCHES, DRAWS = range(6), (16, 128), 1000
WORKERS, RATE, BETA = 3, 1e-3, 0.9
CRITICAL = 2 / np.sqrt(3)
ABOVE, SKEWNESS = "S above 2 / sqrt(3)", "median abs. skewness"
VERDICTS = "skewed", "two modes", "above the bound"


def build():
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(),
                         nn.Flatten(), nn.Linear(16 * 9, 10))  # fmt: skip


def gradients(model, pictures, labels):
    """Return the gradient of each picture's loss, float32 (pictures, coordinates)."""
    weights = {name: weight.detach() for name, weight in model.named_parameters()}

    def loss(weights, picture, label):
        return nn.functional.cross_entropy(functional_call(model, weights, picture[None]), label[None])

    each = vmap(grad(loss), (None, 0, 0))(weights, pictures, labels)
    return torch.cat([part.flatten(1) for part in each.values()], 1).numpy()


def valley(draws_MN):
    """Return each coordinate's deepest valley between two hills of its histogram, in standard errors of counting."""
    low, high = np.quantile(draws_MN, (0.01, 0.99), axis=0)
    scale = 20 / np.where(high > low, high - low, np.inf)  # of a constant no bin is left
    bins = np.clip(np.floor((draws_MN - low) * scale), -1, 20).astype(np.int8)
    counts = np.stack([(bins == b).sum(axis=0) for b in range(20)])
    left, right = np.maximum.accumulate(counts), np.maximum.accumulate(counts[::-1])[::-1]
    hill = np.minimum(left, right)
    return ((hill - counts) / np.sqrt(np.maximum(hill + counts, 1))).max(axis=0)


def judge(draws_MN, mean_N, chance):
    """Return the verdicts on each coordinate's draws as a dict of bool (N,), its S and its skewness."""
    M = len(draws_MN)
    std = draws_MN.std(axis=0)
    d = (draws_MN - draws_MN.mean(axis=0)) / std
    cubes = d**3
    skewness = cubes.mean(axis=0)
    error = (cubes - 3 * d).std(axis=0) / np.sqrt(M)  # of the third moment about an estimated mean, symmetric or not
    S = np.abs(mean_N) / std
    bound = np.where(S > CRITICAL, 2 / 9 / np.maximum(S, 1) ** 2, 0.5 - S / 2 / np.sqrt(3))
    wrong = ((draws_MN < 0) != (mean_N < 0)).sum(axis=0)
    rarer = len(chance) - np.searchsorted(chance, valley(draws_MN))
    p = [2 * stats.norm.sf(np.abs(skewness / error)), (1 + rarer) / (1 + len(chance)),
         stats.binom.sf(wrong - 1, M, bound)]  # fmt: skip
    found = {name: stats.false_discovery_control(each) < 0.05 for name, each in zip(VERDICTS, p, strict=True)}
    return found, S, skewness


def train(seed, pictures, labels):
    """Yield (step, model) at MOMENTS."""
    torch.manual_seed(seed)
    model, rng = build(), np.random.default_rng(seed)
    parameters = list(model.parameters())
    at = nn.utils.parameters_to_vector(parameters).detach()
    momenta = np.zeros((WORKERS, len(at)), np.float32)
    for step in range(max(MOMENTS) + 1):
        if step in MOMENTS:
            yield step, model
        words = []
        for momentum in momenta:
            batch = rng.choice(len(labels), max(BATCHES), replace=False)
            parts = torch.autograd.grad(nn.functional.cross_entropy(model(pictures[batch]), labels[batch]), parameters)
            words.append(np.empty(words_for(len(at)), np.uint64))
            bits.sign(nn.utils.parameters_to_vector(parts), words[-1], rule=Signum(BETA), momentum=momentum)
        at -= RATE * torch.from_numpy(unpack(majority(np.stack(words)), len(at)))
        nn.utils.vector_to_parameters(at, parameters)


def measure():
    torch.set_num_threads(1)
    digits = load_digits()
    pictures, labels = torch.from_numpy(digits.images).float()[:, None] / 16, torch.from_numpy(digits.target)
    rng = np.random.default_rng(1)
    chance = np.sort(np.concatenate([valley(rng.random((DRAWS, 1000), np.float32)) for _ in range(50)]))
    ends = np.cumsum([0, *(sum(weight.numel() for weight in layer.parameters()) for layer in build())])
    layers = [(a, b) for a, b in itertools.pairwise(ends) if b > a]
    portrayed = [(k, int(i)) for k, layer in enumerate(layers) for i in rng.choice(np.arange(*layer), 2, replace=False)]
    S = rng.uniform(0, 2, ends[-1])
    verdicts, *_ = judge((rng.standard_normal((DRAWS, len(S))) + S).astype(np.float32), S, chance)
    yield {"type": "normal", "draws": DRAWS, "coordinates": len(S), "workers": WORKERS, "rate": RATE, "beta": BETA,
           "scipy": scipy.__version__, "scikit-learn": sklearn.__version__} | rounded(verdicts)  # fmt: skip
    for seed in SEEDS:
        for step, model in train(seed, pictures, labels):
            with torch.no_grad():
                guesses = model(pictures)
            each = gradients(model, pictures, labels)
            mean = each.mean(axis=0, dtype=np.float64)
            for batch in BATCHES:
                chosen = np.zeros((DRAWS, len(labels)), np.float32)
                np.put_along_axis(chosen, rng.random(chosen.shape).argsort(axis=1)[:, :batch], 1 / batch, axis=1)
                draws = chosen @ each
                alive = draws.any(axis=0)
                verdicts, S, skewness = judge(draws[:, alive], mean[alive], chance)
                numbers = {"dead": np.mean(~alive), "loss": nn.functional.cross_entropy(guesses, labels).item(),
                           "accuracy": np.mean(guesses.numpy().argmax(1) == digits.target), "median S": np.median(S),
                           SKEWNESS: np.median(np.abs(skewness)), ABOVE: np.mean(S > CRITICAL)}  # fmt: skip
                yield {"type": "moment", "seed": seed, "step": step, "batch": batch} | rounded(numbers | verdicts)
                if seed == SEEDS[0] and batch == max(BATCHES) and step in PORTRAYED:
                    for layer, i in portrayed:
                        counts, edges = np.histogram(draws[:, i], 30)
                        yield {"type": "histogram", "step": step, "layer": layer + 1, "coordinate": i,
                               "low": float(edges[0]), "high": float(edges[-1]), "counts": counts.tolist()}  # fmt: skip


def rounded(numbers):
    """Round each, or the share of the coordinates of which it is true."""
    return {name: float(f"{np.mean(number):.4g}") for name, number in numbers.items()}


def over_seeds(lines, name):
    """Return {(step, batch): the median of what bears that name over the seeds, and its interval}."""
    found = {}
    for line in lines:
        if line["type"] == "moment":
            found.setdefault((line["step"], line["batch"]), []).append(line[name])
    return {key: median_interval(samples) for key, samples in found.items()}


def show(lines, style):
    normal = lines[0]
    columns = {name: over_seeds(lines, name) for name in ("loss", SKEWNESS, "dead", ABOVE, *VERDICTS)}
    cells = {key: ["{:.2g} [{:.2g}, {:.2g}]".format(*of[key]) for of in columns.values()] for key in columns["loss"]}
    seeds = len({line["seed"] for line in lines if line["type"] == "moment"})
    print(f"{normal['coordinates']:,} coordinates, {normal['draws']} mini-batches a moment, {seeds} seeds: median and "
          "its 95 % interval; dead is a share of all coordinates, what is right of it of the living\n")  # fmt: skip
    print(tabulate([[*key, *row] for key, row in cells.items()], ["step", "batch", *columns], style))
    said = ", ".join(f"{name} {100 * normal[name]:.2g} %" for name in VERDICTS)
    print(f"\nWhat the tests find in {normal['coordinates']:,} coordinates of normal draws, false alarms: {said}.")
    for batch in sorted({batch for _, batch in cells}):
        shares = {name: [of[key].median for key in cells if key[1] == batch] for name, of in columns.items()}
        said = ", ".join(f"{name} {min(shares[name]):.2g} to {max(shares[name]):.2g}" for name in list(columns)[3:])
        most = ", ".join(f"{name} at {sum(share > 0.5 for share in shares[name])}" for name in VERDICTS)
        skewness = f"{min(shares[SKEWNESS]):.2g} to {max(shares[SKEWNESS]):.2g}"
        print(f"\nBatch {batch}, medians over training: {said}; {SKEWNESS} {skewness}. "
              f"Of {len(shares[SKEWNESS])} moments most coordinates are {most}.")  # fmt: skip


def draw(lines):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 6.5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(2.2, 1))
    portraits = [line for line in lines if line["type"] == "histogram"]
    rows = len({line["step"] for line in portraits})
    for axes, line in zip(left.subplots(rows, len(portraits) // rows).flat, portraits, strict=True):
        axes.stairs(line["counts"], 1e3 * np.linspace(line["low"], line["high"], len(line["counts"]) + 1), fill=True)
        axes.axvline(0, c="grey", lw=0.8)
        axes.set_title(f"step {line['step']}: layer {line['layer']}, no. {line['coordinate']}", fontsize=7)
        axes.tick_params(labelsize=6)
    left.supxlabel(f"gradient of a mini-batch of {max(BATCHES)}, in thousandths", fontsize=9)
    left.supylabel(f"mini-batches, of {lines[0]['draws']}", fontsize=9)
    for axes, batch in zip(right.subplots(len(BATCHES), 1, sharex=True), BATCHES, strict=True):
        for i, name in enumerate((ABOVE, *VERDICTS)):
            found = {step: interval for (step, b), interval in over_seeds(lines, name).items() if b == batch}
            middle, low, high = 100 * np.transpose([*found.values()])
            axes.errorbar(np.arange(len(found)) + (i - 1.5) / 10, middle, (middle - low, high - middle), ms=4,
                          fmt="os^D"[i], label=name)  # fmt: skip
        axes.axhline(0, c="grey", lw=0.5, zorder=0)
        axes.set_xticks(range(len(found)), [*found])
        axes.set(ylabel="living coordinates, %", ylim=(-3, 103), title=f"batch {batch}")
        axes.legend(fontsize=7)
    axes.set_xlabel("step of training (not to scale)")
    return figure


if __name__ == "__main__":
    keep_and_show("noise", __doc__, measure, show, draw)
