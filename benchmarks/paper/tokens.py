"""Bags of tokens whose frequencies follow Zipf's law, and an embedding that many runs of many workers train at once.

A problem of tuning.py, whose shapes are used here. Of VOCABULARY tokens the first USED occur, the r-th in proportion to
1 / r; the others never do, as padding and what a tokenizer keeps in reserve. A document is LENGTH tokens. Each token
has a vector of its own, hidden from the model, of a number a class; the softmax of a document's sum, times SHARPNESS,
is what its class is drawn from. The model is the mean of the documents' rows of an embedding (VOCABULARY, WIDTH), and
a linear layer. Documents are drawn anew for each mini-batch: nothing is seen twice.
"""

from functools import cache

import numpy as np
import torch
from torch.nn import functional

from benchmarks.paper.tuning import WORST

VOCABULARY, USED, WIDTH, CLASSES, LENGTH, SHARPNESS = 512, 448, 4, 4, 8, 1.5
SHAPES = (VOCABULARY, WIDTH), (WIDTH, CLASSES), (1, CLASSES)
SIZES = [rows * columns for rows, columns in SHAPES]
N, HELD = sum(SIZES), 2000  # the parameters; the documents of each set that is evaluated on
WORLD, TUNING, TEST = 1000, 1001, 1002  # seeds: of the hidden vectors, and of those sets
RARE = slice(2 * USED // 3, USED)  # the rarest third of the tokens that occur
NEVER = slice(USED, VOCABULARY)


@cache
def world():
    """Return the tokens' cumulative frequencies, (USED,), and their hidden vectors, (USED, CLASSES)."""
    cumulative = np.cumsum(1 / np.arange(1, USED + 1))
    vectors = np.random.default_rng(WORLD).standard_normal((USED, CLASSES))
    return cumulative / cumulative[-1], SHARPNESS * vectors


def sample(coins, P, B):
    """Draw the documents of each worker, int64 (P, B, LENGTH + 1): the tokens, and the class behind them."""
    cumulative, vectors = world()
    tokens = cumulative.searchsorted(coins.random((P, B, LENGTH)), "right")
    scores = vectors[tokens].sum(2) + coins.gumbel(size=(P, B, CLASSES))  # its largest is a draw from the softmax
    return torch.from_numpy(np.concatenate([tokens, scores.argmax(2)[..., None]], 2))


def first_parameters(seeds):
    """Draw the parameters of each seed, (R, n): normal, an embedding's of 0.1, a layer's of 1 / sqrt(WIDTH)."""

    def draw(seed):
        coins = torch.Generator().manual_seed(seed)
        scales = 0.1, WIDTH**-0.5, 0.0
        parts = [k * torch.randn(shape, generator=coins) for k, shape in zip(scales, SHAPES, strict=True)]
        return torch.cat([part.flatten() for part in parts])

    return torch.stack([draw(seed) for seed in seeds])


def losses_and_scores(x, documents):
    """Return the mean loss of each of K models `x`, (K, n), on its documents, (K, B, LENGTH + 1), and their scores."""
    K = len(x)
    rows, weights, bias = (part.view(K, *shape) for part, shape in zip(x.split(SIZES, 1), SHAPES, strict=True))
    places = documents[..., :-1] + VOCABULARY * torch.arange(K)[:, None, None]
    means = functional.embedding(places, rows.reshape(-1, WIDTH)).mean(2)
    scores = torch.baddbmm(bias, means, weights)
    losses = functional.cross_entropy(scores.flatten(0, 1), documents[..., -1].flatten(), reduction="none")
    return losses.view(K, -1).mean(1), scores


def gradients(x, sampled):
    """Return each worker's gradient, (R, P, n), at its run's parameters `x`, (R, n)."""
    copies = x.repeat_interleave(sampled.shape[1], 0).requires_grad_()
    losses, _ = losses_and_scores(copies, sampled.flatten(0, 1))
    return torch.autograd.grad(losses.sum(), copies)[0].view(*sampled.shape[:2], N)


@cache
def held(seed):
    """Return documents to evaluate on, (HELD, LENGTH + 1)."""
    return sample(np.random.default_rng(seed), 1, HELD)[0]


@torch.no_grad()
def evaluate(x):
    """Return each run's loss on the documents for tuning, and loss and accuracy on those for testing, (R,) each."""
    losses, _ = losses_and_scores(x, held(TUNING).expand(len(x), -1, -1))
    test, scores = losses_and_scores(x, held(TEST).expand(len(x), -1, -1))
    right = scores.argmax(2) == held(TEST)[:, -1]
    losses, test = (values.nan_to_num(WORST, WORST).clamp(max=WORST) for values in (losses, test))
    return {"losses": losses, "test_losses": test, "accuracies": right.float().mean(1)}
