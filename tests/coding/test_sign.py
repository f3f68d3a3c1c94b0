"""What is signed by which rule: the law by the reference, bit for bit, for all that code, and what follows from it."""

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from places import SIZES, guarded, intact, tensor, words

from mpisign import Lion, Noisy, Rule, SignSGD, Signum, Stochastic
from mpisign.coding import bits, coding
from mpisign.coding.rules import check_rule, dither_key
from mpisign.coding.sizes import words_for

RULES = {
    "signum": Signum(), "slow signum": Signum(0.999), "signsgd": SignSGD(), "lion": Lion(), "odd": Rule("odd", 0, 0.5),
    "noisy": Noisy(0.3), "noisy lion": Noisy(0.5, Lion()), "stochastic": Stochastic(2.0),
    "stochastic signum": Stochastic(0.1, Signum()),
}  # fmt: skip
rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
HUGE = np.finfo(np.float32).max
KEY = 2**64 - 3


def momentum(n, seed=0):
    """Finite, with -0.0, subnormals and floats so large that most differences from them overflow."""
    m = np.random.default_rng(seed).standard_normal(n).astype(np.float32)
    m[::5], m[1::23], m[2::29], m[3::31] = -0.0, -1e-45, -HUGE, HUGE
    return m


def gradient(n, seed=0):
    """With all that is not finite, and such as the momentum has."""
    g = reference.awkward(n, seed) * np.float32(3)
    g[4::19], g[5::37], g[6::41], g[::10], g[7::43] = np.inf, HUGE, -HUGE, 0, -np.nan
    return g


def same(got, wanted):
    return np.array_equal(np.asarray(got).view(np.uint32), np.asarray(wanted).view(np.uint32))


@rules
@pytest.mark.parametrize("n", SIZES)
def test_sign_equals_the_reference_step_after_step(n, rule, place):
    m = momentum(n)
    buffers = [guarded((words_for(n),), torch.int64, place) for _ in range(2)]
    buffers += [guarded((n,), torch.float32, place) for _ in range(2)]
    (_, signs), (_, zeros), (_, here), (_, there) = buffers
    here.copy_(torch.from_numpy(m))
    faults, expected = torch.full((1,), 5, dtype=torch.int64, device=place), 5
    for step in range(3):
        g = gradient(n, step)
        named = {"momentum": here, "moved": there} if rule.has_momentum else {}
        coding.sign(tensor(g, place), signs, rule=rule, **named, zeros=zeros, faults=faults, key=KEY + step - 2)
        signed, moved, zero, found = reference.sign(g, rule, m if rule.has_momentum else None, KEY + step - 2)
        expected += found
        assert np.array_equal(words(signs), signed)
        assert np.array_equal(words(zeros), zero)
        assert faults.item() == expected
        assert found > 0 or n < 4
        if rule.has_momentum:
            assert same(here.cpu(), m)
            assert same(there.cpu(), moved)
            here, there, m = there, here, moved
    assert all(intact(buffer) for buffer, _ in buffers)


@rules
@pytest.mark.parametrize("n", [1, 64, 321])
def test_in_place_and_with_nothing_asked_for_the_bits_are_the_same(n, rule, place):
    g, m = gradient(n), momentum(n)
    signed, moved, _, _ = reference.sign(g, rule, m if rule.has_momentum else None, 7)
    signs, held = torch.empty(words_for(n), dtype=torch.int64, device=place), tensor(m, place)
    coding.sign(tensor(g, place), signs, rule=rule, momentum=held if rule.has_momentum else None, key=7)
    assert np.array_equal(words(signs), signed)
    assert same(held.cpu(), moved if rule.has_momentum else m)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("rule", [Signum(), SignSGD(), Noisy(0.5, Lion())])
@pytest.mark.parametrize("n", [0, 1, 127, 128, 129, 64 * 5 + 1])
def test_other_types_are_signed_as_float32(n, rule, dtype, place, monkeypatch):
    monkeypatch.setattr(coding, "CHUNK", 128)
    g, m = torch.from_numpy(gradient(n)).to(dtype), momentum(n)
    if dtype == torch.float64:
        g[::9] = 1e300  # of float32 it is an infinity
    signed, moved, zero, found = reference.sign(g.float().numpy(), rule, m if rule.has_momentum else None, 9)
    signs, zeros = (torch.empty(words_for(n), dtype=torch.int64, device=place) for _ in range(2))
    held, faults = tensor(m, place), torch.zeros(1, dtype=torch.int64, device=place)
    named = {"momentum": held} if rule.has_momentum else {}
    coding.sign(g.to(place), signs, rule=rule, **named, zeros=zeros, faults=faults, key=9)
    assert np.array_equal(words(signs), signed)
    assert np.array_equal(words(zeros), zero)
    assert faults.item() == found
    assert not rule.has_momentum or same(held.cpu(), moved)


@pytest.mark.parametrize("dtype", coding.FLOATS)
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("n", [0, 1, 127, 128, 129, 64 * 5 + 1])
def test_signs_are_given_back_in_each_type(n, rows, dtype, place, monkeypatch):
    monkeypatch.setattr(coding, "CHUNK", 128)
    voted = np.random.default_rng(n).integers(0, 2**64, (rows, words_for(n)), np.uint64)
    buffer, out = guarded((n,), dtype, place)
    assert coding.unpack(tensor(voted, place), n, out) is out
    assert np.array_equal(out.cpu().float(), reference.unpack(voted, n))
    assert intact(buffer)


def test_torchs_default_type_does_not_matter(place):
    torch.set_default_dtype(torch.float64)
    try:
        test_in_place_and_with_nothing_asked_for_the_bits_are_the_same(321, Noisy(0.3), place)
        assert coding.unpack(torch.zeros(1, dtype=torch.int64, device=place), 3).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_momentum_is_rounded_twice_not_fused(place):
    """Of so many products, hundreds come out otherwise if they are fused with the addition."""
    rng = np.random.default_rng(0)
    m, g = (rng.standard_normal(4096).astype(np.float32) for _ in range(2))
    moved, signs = tensor(m, place), torch.empty(64, dtype=torch.int64, device=place)
    coding.sign(tensor(g, place), signs, rule=Signum(0.9), momentum=moved)
    assert same(moved.cpu(), reference.momentum(m, g, 0.9))
    weight = np.float32(1 - 0.9).astype(np.float64)
    fused = (m + weight * (g - m).astype(np.float64)).astype(np.float32)
    assert (fused != reference.momentum(m, g, 0.9)).sum() > 100


@pytest.mark.parametrize("rule", [Stochastic(0.3), Noisy(0.3, SignSGD())])
def test_the_dither_is_rounded_twice_not_fused(rule, place):
    """A gradient that is minus its own dither makes 0 of each coordinate; fused, half of them came out negative."""
    scaled = np.float32(rule.scale) * reference.dither(rule, 5, 4096)
    signs = torch.empty(64, dtype=torch.int64, device=place)
    coding.sign(tensor(-scaled, place), signs, rule=rule, key=5)
    assert not signs.any()
    coding.sign(tensor(np.nextafter(-scaled, np.float32(-np.inf)), place), signs, rule=rule, key=5)
    assert (signs == -1).all()
    exact = np.float64(np.float32(rule.scale)) * reference.dither(rule, 5, 4096).astype(np.float64)
    assert (exact - scaled < 0).sum() > 1000


def test_lion_is_the_published_update():
    """google/automl, lion: sign(exp_avg b1 + grad (1 - b1)), then exp_avg b2 + grad (1 - b2)."""
    rng, n, b1, b2 = np.random.default_rng(0), 100_000, 0.9, 0.99
    m, exact = np.zeros(n, np.float32), np.zeros(n)
    for _ in range(20):
        g = rng.standard_normal(n).astype(np.float32)
        update, signs = exact * b1 + g * (1 - b1), np.empty(words_for(n), np.uint64)
        exact = exact * b2 + g * (1 - b2)
        bits.sign(g, signs, rule=Lion(b1, b2), momentum=m)
        clear = np.abs(update) > 1e-6
        assert np.array_equal(bits.unpack(signs, n)[clear], np.where(update < 0, -1, 1)[clear])
        assert np.mean(~clear) < 1e-4
        np.testing.assert_allclose(m, exact, rtol=0, atol=1e-6)
    signum = np.sign(exact) == np.sign(update)
    assert np.mean(~signum) > 0.05  # what is signed is not what is kept


extremes = st.sampled_from(
    [0.0, -0.0, HUGE, -HUGE, HUGE / 2, -HUGE / 2, np.inf, -np.inf, np.nan, 2.0**103, -(2.0**103)]
)
vectors = hnp.arrays(np.float32, (4, 70), elements=extremes | st.floats(width=32))


@given(vectors, st.sampled_from([1e-7, 0.1, 0.5, 0.9, 0.999, 1 - 1e-9]))
def test_no_gradient_makes_the_momentum_infinite_or_nan(gradients, beta):
    m, signs = np.zeros(70, np.float32), np.empty(2, np.uint64)
    for g in gradients:
        bits.sign(g, signs, rule=Signum(beta), momentum=m)
        assert np.isfinite(m).all()


@given(vectors)
def test_of_a_gradient_without_momentum_the_sign_is_what_pack_says_but_for_what_is_infinite(gradients):
    for g in gradients:
        signs, faults = np.empty(2, np.uint64), np.zeros(1, np.int64)
        bits.sign(g, signs, rule=SignSGD(), faults=faults)
        assert np.array_equal(signs, reference.pack(np.where(np.isfinite(g), g, 0)))
        assert faults[0] == (~np.isfinite(g)).sum()


def shares(rule, us, n=1 << 17):
    """Return the shares of minus signs that a rule gives of each u."""
    signs = np.empty(words_for(n), np.uint64)
    for at, u in enumerate(us):
        bits.sign(np.full(n, u, np.float32), signs, rule=rule, key=dither_key(1, at, 2, 3))
        yield bits.count_ones(signs) / n


def test_stochastic_signs_have_the_probability_they_should():
    us, n = np.linspace(-0.6, 0.6, 13), 1 << 17
    wanted = np.clip(0.5 - us / (2 * 0.5), 0, 1)
    got = np.array([*shares(Stochastic(0.5), us, n)])
    assert (np.abs(got - wanted) <= 4 * np.sqrt(wanted * (1 - wanted) / n)).all()
    assert set(got[[0, 1, -2, -1]]) <= {0.0, 1.0}


def test_noisy_signs_have_the_probability_they_should():
    """Exactly that of a sum of eight bytes, and that of a normal number to within a third of a percent."""
    normal = pytest.importorskip("scipy.stats").norm
    law = np.ones(1)
    for _ in range(8):
        law = np.convolve(law, np.full(256, 1 / 256))
    dithers = (np.arange(len(law)) - 1020) / np.sqrt(8 * (256**2 - 1) / 12)
    np.testing.assert_allclose([law @ dithers, law @ dithers**2], [0, 1], atol=1e-9)
    us, n = np.linspace(-1.2, 1.2, 13) + 1e-4, 1 << 17
    wanted = np.array([law[u + 0.5 * dithers < 0].sum() for u in us])
    got = np.array([*shares(Noisy(0.5, SignSGD()), us, n)])
    assert (np.abs(got - wanted) <= 4 * np.sqrt(wanted * (1 - wanted) / n)).all()
    assert (np.abs(wanted - normal.cdf(-us / 0.5)) < 1 / 300).all()


@pytest.mark.parametrize("rule", [Stochastic(1.0), Noisy(1.0, SignSGD())])
def test_ranks_buckets_and_steps_throw_anew(rule):
    """Of two throws that have nothing to do with each other half of the signs agree; shifted ones too."""
    n, thrown = 1 << 15, []
    for place in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)):
        signs = np.empty(words_for(n), np.uint64)
        bits.sign(np.zeros(n, np.float32), signs, rule=rule, key=dither_key(7, *place))
        thrown.append(reference.bits_of(signs))
    thrown += [np.roll(thrown[0], 1), np.roll(thrown[0], 64)]
    agree = np.array([np.mean(a == b) for i, a in enumerate(thrown) for b in thrown[:i]])
    assert (np.abs(agree - 0.5) < 4 * 0.5 / np.sqrt(n)).all()


@given(st.integers(-(2**70), 2**70), *[st.integers(0, 2**40)] * 3)
def test_the_key_is_the_references(seed, rank, bucket, step):
    assert dither_key(seed, rank, bucket, step) == reference.dither_key(seed, rank, bucket, step) < 2**64


@pytest.mark.parametrize("dtype", coding.FLOATS)
def test_silent_is_what_holds_nothing_but_zeros(dtype, place):
    smallest = torch.finfo(dtype).smallest_normal
    parts = [[0.0] * 200, [], [-0.0] * 64, [0.0] * 199 + [1], [smallest] + [0.0] * 70, [np.nan] * 3, [0.0, np.inf],
             [-1.0], [0.0], [0.0] * 64 + [-smallest] + [0.0] * 90, [1.0, -1.0], [-0.0]]  # fmt: skip
    wanted = [not np.any(part) for part in parts]
    flat = torch.tensor([x for part in parts for x in part], dtype=dtype, device=place)
    got = coding.silent(flat, [len(part) for part in parts])
    assert isinstance(got, np.ndarray)
    assert got.dtype == np.bool_
    assert got.tolist() == wanted
    assert coding.silent(flat[:0], []).shape == (0,)


@pytest.mark.parametrize("W", [0, 1, 1000])
def test_ones_and_differences_are_counted(W, place):
    a, b = np.random.default_rng(W).integers(0, 2**64, (2, W), np.uint64)
    a[: W // 2] = 2**64 - 1
    total = torch.full((1,), 3, dtype=torch.int64, device=place)
    coding.count_ones(tensor(a, place), total)
    assert total.item() == 3 + reference.bits_of(a).sum()
    coding.count_differing(tensor(a, place), tensor(b, place), total)
    assert total.item() == 3 + reference.bits_of(a).sum() + reference.bits_of(a ^ b).sum()


@pytest.mark.parametrize("W", [0, 1, 300])
def test_zeros_fall_as_the_reference_says(W, place):
    signs, zeros = np.random.default_rng(W).integers(0, 2**64, (2, W), np.uint64)
    ours = tensor(signs & ~zeros, place)
    coding.fill_zeros(ours, tensor(zeros, place), KEY)
    assert np.array_equal(words(ours), reference.fill_zeros(signs & ~zeros, zeros, KEY))
    fallen = reference.bits_of(words(ours) & zeros).sum() / max(1, reference.bits_of(zeros).sum())
    assert W < 300 or abs(fallen - 0.5) < 0.02


def f32(n):
    return torch.zeros(n)


def w64(n):
    return torch.zeros(n, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: coding.sign(f32(3).int(), w64(1), rule=SignSGD()), "gradient: .*int32"),
        (lambda: coding.sign(f32(6)[::2], w64(1), rule=SignSGD()), "gradient: .*not contiguous"),
        (lambda: coding.sign(f32(3).to(torch.complex64), w64(1), rule=SignSGD()), "gradient: .*complex64"),
        (lambda: coding.sign(f32(65), w64(1), rule=SignSGD()), "words: "),
        (lambda: coding.sign(f32(3), w64(1), rule=Signum()), "momentum: the rule signum has one"),
        (lambda: coding.sign(f32(3), w64(1), rule=SignSGD(), momentum=f32(3)), "momentum: the rule signsgd has none"),
        (lambda: coding.sign(f32(3), w64(1), rule=SignSGD(), moved=f32(3)), "moved: "),
        (lambda: coding.sign(f32(3), w64(1), rule=Signum(), momentum=f32(4)), "momentum: "),
        (lambda: coding.sign(f32(3).half(), w64(1), rule=Signum(), momentum=f32(3).half()), "momentum: .*float16"),
        (lambda: coding.sign(f32(3), w64(1), rule=Signum(), momentum=f32(3), moved=f32(2)), "moved: "),
        (lambda: coding.sign(f32(3), w64(1), rule=SignSGD(), zeros=w64(2)), "zeros: "),
        (lambda: coding.sign(f32(3), w64(1), rule=SignSGD(), faults=w64(2)), "faults: "),
        (lambda: coding.sign(f32(3), w64(1), rule=Signum(1.0)), "rule: vote "),
        (lambda: coding.unpack(w64(1), 3, f32(3).int()), "out: .*int32"),
        (lambda: coding.silent(f32(3), [1, 1]), "sizes: add up to 2"),
        (lambda: coding.silent(f32(3).int(), [3]), "gradient: "),
        (lambda: coding.count_ones(w64(3), w64(2)), "total: "),
        (lambda: coding.count_differing(w64(3), w64(2), w64(1)), "b: "),
        (lambda: coding.fill_zeros(w64(3), w64(2), 0), "zeros: "),
        (lambda: bits.sign(np.zeros(3), np.zeros(1, np.uint64), rule=SignSGD()), "gradient: .*float64"),
        (lambda: bits.sign(np.zeros(3, "f"), np.zeros(2, np.uint64), rule=SignSGD()), "words: "),
        (
            lambda: bits.sign(np.zeros(3, "f"), np.zeros(1, np.uint64), rule=Signum(), momentum=np.zeros(4, "f")),
            "momentum: ",
        ),
    ],
)
def test_faulty_arguments_are_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        (0.9, "rule: must be a Rule, .*0.9"),
        (Signum(-0.1), "rule: vote "),
        (Signum(float("nan")), "rule: vote "),
        (Lion(0.9, 1.0), "rule: keep "),
        (Lion(0.9, 0.0), "rule: keep .*at least"),
        (Signum(1e-9), "rule: keep .*at least"),
        (Noisy(-1.0), "rule: scale "),
        (Noisy(float("nan")), "rule: scale "),
        (Stochastic(float("inf")), "rule: scale "),
        (Rule("mine", dither="cauchy", scale=1.0), "rule: unknown dither 'cauchy'"),
    ],
)
def test_a_faulty_rule_is_refused(rule, named):
    with pytest.raises(ValueError, match=named):
        check_rule(rule)


@rules
def test_the_rules_are_well_formed(rule):
    check_rule(rule)
    assert rule.has_momentum == (max(rule.vote, rule.keep) > 0)
