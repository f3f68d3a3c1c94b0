"""signSGD is Adam without its averages: beta1 = beta2 = eps = 0 (arXiv 1802.04434; Balles & Hennig, ICML 2018,
arXiv 1705.07774). Then Adam's step is lr g / sqrt(g^2) = lr sign(g), where g is not 0.

The laws are exact, not approximate. In binary floating point sqrt(g^2) rounds to |g|, as long as g^2 is a normal
number, and torch computes (lr g) / |g|: exactly lr if lr is a power of two, for then lr g is not rounded.
"""

import numpy as np
import pytest
import torch

import mpisign

SIZES = 1, 2, 63, 64, 65, 64 * 27 + 1
STEPS = 20


def gradients(n, seed=0):
    """STEPS gradients float32 (n,) of both signs and 30 magnitudes, none of them 0."""
    rng = np.random.default_rng(seed)
    for _ in range(STEPS):
        yield (rng.choice([-1, 1], n) * rng.uniform(1, 2, n) * 10.0 ** rng.integers(-15, 15, n)).astype(np.float32)


def adam(start, lr, **how):
    weights = torch.nn.Parameter(torch.from_numpy(start.copy()))
    return weights, torch.optim.Adam([weights], lr=lr, betas=(0.0, 0.0), eps=0, **how)


def signs(gradient):
    return mpisign.unpack(mpisign.pack(gradient), len(gradient))


@pytest.mark.parametrize(
    "how", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=("one by one", "foreach", "fused")
)
@pytest.mark.parametrize("n", SIZES)
def test_the_weights_are_adams_bit_for_bit(n, how):
    lr = 2.0**-10
    ours = np.random.default_rng(1).standard_normal(n, np.float32)
    theirs, optimizer = adam(ours, lr, **how)
    for gradient in gradients(n):
        ours -= np.float32(lr) * signs(gradient)
        theirs.grad = torch.from_numpy(gradient)
        optimizer.step()
        assert np.array_equal(ours.view(np.uint32), theirs.detach().numpy().view(np.uint32))


@pytest.mark.parametrize("n", SIZES)
def test_the_step_is_the_learning_rate_up_to_its_rounding_at_any_rate(n):
    """From 0 the first step is seen whole: lr up to the two roundings of (lr g) / |g|, with the sign exact."""
    for lr, gradient in zip((1e-4, 3e-4, 0.1), gradients(n), strict=False):
        theirs, optimizer = adam(np.zeros(n, np.float32), lr)
        theirs.grad = torch.from_numpy(gradient)
        optimizer.step()
        step = -theirs.detach().numpy()
        assert np.array_equal(np.sign(step), signs(gradient))
        np.testing.assert_array_max_ulp(np.abs(step), np.full(n, lr, np.float32), maxulp=1)


def test_where_the_law_ends():
    """At 0 Adam is 0 / 0, and where g^2 leaves float32 it steps too far or not at all; the sign goes on."""
    gradient = np.array([0, -0.0, 1e-30, -1e-30, 1e30, -1e30], np.float32)
    theirs, optimizer = adam(np.zeros(6, np.float32), 0.5)
    theirs.grad = torch.from_numpy(gradient)
    optimizer.step()
    np.testing.assert_array_equal(-theirs.detach().numpy(), [np.nan, np.nan, np.inf, -np.inf, 0, 0])
    assert signs(gradient).tolist() == [1, 1, 1, -1, 1, -1]
