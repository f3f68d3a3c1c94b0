import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.paper import rivals


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def coins(seed=0):
    return torch.Generator().manual_seed(seed)


@given(st.integers(0, 3), st.integers(0, 4), st.integers(1, 20), st.integers(0, 2**32))
def test_multi_krum_is_its_definition(f, more, n, seed):
    P = 2 * f + 3 + more
    sent = normal(P, n, seed=seed).double()
    scores = []
    for i in range(P):
        others = [float(((sent[i] - sent[j]) ** 2).sum()) for j in range(P) if j != i]
        scores.append(min(sum(subset) for subset in itertools.combinations(others, P - f - 2)))
    assert np.allclose(rivals.krum_scores(sent, f), scores)
    best = np.argsort(scores, kind="stable")[: P - f].copy()
    assert torch.allclose(rivals.multi_krum(sent, f), sent[best].mean(0))


def test_multi_krum_leaves_out_two_far_ones():
    sent = normal(7, 50)
    sent[[1, 5]] *= -100
    honest = [0, 2, 3, 4, 6]
    assert torch.allclose(rivals.multi_krum(sent, 2), sent[honest].mean(0))


def test_multi_krum_needs_enough_workers():
    with pytest.raises(ValueError, match="at least 7"):
        rivals.multi_krum(normal(6, 5), 2)


def test_rules_take_many_runs_at_once():
    sent = normal(3, 7, 11)
    for rule in (lambda x: rivals.multi_krum(x, 2), rivals.coordinate_median):
        assert torch.allclose(rule(sent), torch.stack([rule(rows) for rows in sent]))


@pytest.mark.parametrize("P", [1, 2, 3, 4, 7, 16])
@pytest.mark.parametrize("n", [0, 1, 65])
def test_median_is_numpys(P, n):
    sent = normal(P, n, seed=P)
    assert np.allclose(rivals.coordinate_median(sent), np.median(sent.numpy(), 0))


@pytest.mark.parametrize("n", [1, 7, 8, 9, 21])
def test_qsgd_is_unbiased(n):
    v, trials = normal(n, seed=n), 20_000
    decoded, _ = rivals.qsgd(v.expand(trials, n), 3, 8, coins())
    error = decoded.mean(0) - v
    assert (error.abs() <= 6 * decoded.std(0) / trials**0.5 + 1e-5).all()


@given(st.integers(1, 40), st.integers(1, 9), st.sampled_from([1, 4, 16]), st.integers(0, 2**32))
def test_qsgd_takes_one_of_the_two_nearest_levels_and_keeps_the_sign(n, levels, bucket, seed):
    v = normal(2, n, seed=seed)
    decoded, _ = rivals.qsgd(v, levels, bucket, coins(seed))
    for start in range(0, n, bucket):
        part, got = v[:, start : start + bucket], decoded[:, start : start + bucket]
        level = levels * got.abs() / part.norm(dim=-1, keepdim=True)
        assert torch.allclose(level, level.round(), atol=1e-4)
        assert ((level - levels * part.abs() / part.norm(dim=-1, keepdim=True)).abs() < 1 + 1e-4).all()
        assert (got * part >= 0).all()


def test_qsgd_of_zeros_is_zeros():
    decoded, bits = rivals.qsgd(torch.zeros(2, 10), 7, 4, coins())
    assert not decoded.any()
    assert bits.tolist() == [10 + 3 * 32] * 2


def gamma(number):
    """Write Elias's gamma code."""
    binary = f"{number:b}"
    return "0" * (len(binary) - 1) + binary


def test_qsgd_counts_the_bits_of_its_code():
    for level in range(300):
        assert rivals.elias_bits(torch.tensor(float(level))) == len(gamma(level + 1)) + (level > 0)
    v = normal(1000)
    decoded, bits = rivals.qsgd(v, 7, 512, coins())
    norms = torch.stack([part.norm() for part in v.split(512)]).repeat_interleave(512)[:1000]
    levels = (7 * decoded.abs() / norms).round().int().tolist()
    assert bits == sum(len(gamma(level + 1)) + (level > 0) for level in levels) + 2 * 32


@given(st.integers(1, 100), st.integers(0, 2**32))
def test_error_feedback_loses_nothing(n, seed):
    vectors, error = normal(3, n, seed=seed), normal(3, n, seed=seed + 1)
    sent, left = rivals.sign_with_feedback(vectors, error)
    assert torch.allclose(sent + left, vectors + error, atol=1e-5)
    assert torch.allclose(sent.abs(), (vectors + error).abs().mean(-1, keepdim=True).expand_as(sent))
    assert (left.norm(dim=-1) <= (vectors + error).norm(dim=-1) * (1 + 1e-5)).all()


def test_error_feedback_over_steps_sends_the_sum():
    error, total = torch.zeros(9), torch.zeros(9)
    for step in range(50):
        sent, error = rivals.sign_with_feedback(normal(9, seed=step), error)
        total += sent
    wanted = sum(normal(9, seed=step) for step in range(50))
    assert torch.allclose(total + error, wanted, atol=1e-4)


def test_a_workers_gradient_is_that_of_its_own_pictures():
    from benchmarks.paper import digits

    x, index = digits.first_parameters([0, 1]), torch.arange(2 * 3 * 4).view(2, 3, 4)
    got = digits.gradients(x, index)
    for run, worker in itertools.product(range(2), range(3)):
        alone = x[run : run + 1].clone().requires_grad_()
        patches, labels = (data[index[run, worker]] for data in digits.pictures())
        w1, b1, w2, b2, w3, b3 = (
            part.view(shape) for part, shape in zip(alone[0].split(digits.SIZES), digits.SHAPES, strict=True)
        )
        hidden = (patches @ w1 + b1).relu().transpose(1, 2).reshape(4, 20, 4, 4)
        kernels = w2.view(2, 2, 20, 40).permute(3, 2, 0, 1)
        hidden = torch.conv2d(hidden, kernels, b2[0], stride=2).relu()
        scores = hidden.permute(0, 2, 3, 1).flatten(1) @ w3 + b3
        (wanted,) = torch.autograd.grad(torch.nn.functional.cross_entropy(scores, labels), alone)
        assert torch.allclose(got[run, worker], wanted[0], atol=1e-5)


@pytest.mark.parametrize("P", [1, 4, 7])
def test_the_vote_of_runs_is_the_sign_of_the_sum(P):
    from benchmarks.paper import digits

    messages = normal(2, P, digits.N)
    signs = torch.where(messages < 0, -1.0, 1.0).sum(1)
    assert torch.equal(digits.vote(messages), torch.where(signs < 0, -1.0, 1.0))
