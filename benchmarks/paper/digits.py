"""scikit-learn's digits and a small CNN that many runs of many workers train at once, in one process.

The data are 1797 real pictures of 8 x 8: 1437 to train on and 360 to test on, always the same. The CNN is a 3 x 3
convolution of stride 2 to 20 channels, a 2 x 2 one of stride 2 to 40, and a linear layer, with ReLU: 5050 parameters.
A problem of tuning.py, whose shapes are used here. Each worker draws its own mini-batches from all training pictures,
with replacement.
"""

from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.nn import functional

import mpisign
from benchmarks.paper.tuning import WORST

SHAPES = (9, 20), (1, 20), (80, 40), (1, 40), (160, 10), (1, 10)
SIZES = [rows * columns for rows, columns in SHAPES]
N, TRAIN, SPLIT_SEED = sum(SIZES), 1437, 0


@cache
def pictures():
    """Return the 3 x 3 patches of all pictures, float32 (1797, 16, 9), and their digits; the first TRAIN train."""
    digits = load_digits()
    order = torch.from_numpy(np.random.default_rng(SPLIT_SEED).permutation(len(digits.target)))
    pixels = torch.from_numpy(digits.images).float()[order]
    train = pixels[:TRAIN]
    patches = functional.unfold((pixels[:, None] - train.mean()) / train.std(), 3, padding=1, stride=2)
    return patches.transpose(1, 2).contiguous(), torch.from_numpy(digits.target)[order]


def first_parameters(seeds):
    """Draw the parameters of each seed, (R, n): He's normal weights, biases 0."""

    def draw(seed):
        coins = torch.Generator().manual_seed(seed)
        parts = [torch.randn(shape, generator=coins) * (shape[0] > 1) * (2 / shape[0]) ** 0.5 for shape in SHAPES]
        return torch.cat([part.flatten() for part in parts])

    return torch.stack([draw(seed) for seed in seeds])


def sample(coins, P, B):
    """Draw the places of each worker's pictures, (P, B)."""
    return torch.from_numpy(coins.integers(TRAIN, size=(P, B)))


def losses_and_scores(x, index):
    """Return the mean loss of each of K networks, (K,), on its pictures, and their scores, (K, B, 10).

    `x` are the networks' parameters, (K, n), and `index` the places of their pictures, (K, B).
    """
    patches, digits = (data[index] for data in pictures())
    K, B = index.shape
    w1, b1, w2, b2, w3, b3 = (part.view(K, *shape) for part, shape in zip(x.split(SIZES, 1), SHAPES, strict=True))
    first = torch.baddbmm(b1, patches.view(K, B * 16, 9), w1).relu_()
    second = first.view(K, B, 2, 2, 2, 2, 20).transpose(3, 4).reshape(K, B * 4, 80)
    third = torch.baddbmm(b2, second, w2).relu_().view(K, B, 160)
    scores = torch.baddbmm(b3, third, w3)
    losses = functional.cross_entropy(scores.flatten(0, 1), digits.flatten(), reduction="none")
    return losses.view(K, B).mean(1), scores


def gradients(x, index):
    """Return each worker's gradient, (R, P, n), at its run's parameters `x`, (R, n); `index` is (R, P, B)."""
    copies = x.repeat_interleave(index.shape[1], 0).requires_grad_()
    losses, _ = losses_and_scores(copies, index.flatten(0, 1))
    return torch.autograd.grad(losses.sum(), copies)[0].view(*index.shape[:2], N)


@torch.no_grad()
def evaluate(x):
    """Return the training loss and the test accuracy of each run, (R,) each, in a dict."""
    places = torch.arange(len(pictures()[1])).expand(len(x), -1)
    losses, _ = losses_and_scores(x, places[:, :TRAIN])
    _, scores = losses_and_scores(x, places[:, TRAIN:])
    right = scores.argmax(2) == pictures()[1][TRAIN:]
    return {"losses": losses.nan_to_num(WORST, WORST).clamp(max=WORST), "accuracies": right.float().mean(1)}


def vote(messages):
    """Return the signs that the workers of each run vote, (R, n): packed, the majority of words, unpacked."""
    words = (np.stack([mpisign.pack(row) for row in rows]) for rows in messages.numpy())
    return torch.from_numpy(np.stack([mpisign.unpack(mpisign.majority(ballots), N) for ballots in words]))
