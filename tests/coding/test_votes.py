import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from mpisign.coding import bits, counting
from mpisign.coding.sizes import BLOCK, blocks_for, planes_for
from mpisign.coding.ties import TIES, Tie

VOTERS = [1, 2, 3, 4, 5, 6, 7, 8, 14, 15, 16, 17, 22, 30, 31, 32, 33, 63, 64, 65, 100]
WIDTHS = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 17]


def ballots(P, W, seed=0):
    return np.random.default_rng(seed).integers(0, 2**64, (P, W), np.uint64)


def counters(P, W):
    return np.empty((blocks_for(W), planes_for(P), BLOCK), np.uint64)


@pytest.mark.parametrize("rule", TIES)
@pytest.mark.parametrize("P", VOTERS)
def test_majority_equals_the_reference(P, rule):
    for W in WIDTHS:
        words = ballots(P, W, W)
        assert np.array_equal(counting.majority(words, Tie(rule, 3, 5)), reference.majority(words, rule, 3, 5))


@given(
    st.integers(1, 40),
    st.integers(0, 300),
    st.sampled_from(TIES),
    st.integers(0, 2**70),
    st.integers(0, 2**40),
)
def test_majority_equals_the_reference_for_any_shape(P, W, rule, seed, step):
    words = ballots(P, W, seed)
    assert np.array_equal(counting.majority(words, Tie(rule, seed, step)), reference.majority(words, rule, seed, step))


@given(st.integers(1, 20), st.integers(0, 2**32))
def test_majority_does_not_depend_on_the_order_of_voters(P, seed):
    words = ballots(P, 5, seed)
    shuffled = np.random.default_rng(seed).permutation(words)
    for rule in TIES:
        assert np.array_equal(counting.majority(words, rule), counting.majority(shuffled, rule))


@pytest.mark.parametrize("P", [1, 2, 3, 5, 16, 64])
def test_extremes(P):
    ones, none = np.full((P, 3), 2**64 - 1, np.uint64), np.zeros((P, 3), np.uint64)
    assert (counting.majority(ones) == 2**64 - 1).all()
    assert (counting.majority(none) == 0).all()


@pytest.mark.parametrize("P", [2, 3, 7, 15, 16, 33])
@pytest.mark.parametrize("rule", TIES)
def test_a_vote_may_overwrite_one_of_its_rows(P, rule):
    for W in (1, BLOCK, 2 * BLOCK + 5):
        words = ballots(P, W)
        truth = np.atleast_2d(reference.majority(words, rule, 1, 2))
        ties = np.full(W if rule == "zero" else 0, 9, np.uint64)
        counting.vote_into(words, Tie(rule, 1, 2), words[P // 2], ties)
        assert np.array_equal(words[P // 2], truth[0])
        if rule == "zero":
            assert np.array_equal(ties, truth[1])


def test_a_share_throws_the_coins_of_the_whole():
    words, tie = ballots(4, 300), Tie("random", 7, 11)
    parts = []
    for start, stop in ((0, 100), (100, 228), (228, 300)):
        out = np.empty(stop - start, np.uint64)
        counting.vote_into(np.ascontiguousarray(words[:, start:stop]), tie, out, out[:0], start)
        parts.append(out)
    assert np.array_equal(np.concatenate(parts), counting.majority(words, tie))
    assert np.array_equal(counting.coins(tie, 300), reference.coins(7, 11, 300))


def test_coins_are_fair_and_differ_from_step_to_step():
    throws = np.stack([counting.coins(Tie("random", 0, step), 1000) for step in range(20)])
    share = reference.bits_of(throws).mean()
    assert abs(share - 0.5) < 0.005  # 1.28 M throws: eleven standard deviations
    assert len({throw.tobytes() for throw in throws}) == 20


@given(st.integers(1, 40), st.integers(0, 39), st.integers(0, 300), st.sampled_from(TIES), st.integers(0, 2**32))
def test_merged_counters_decide_like_one_vote(P, cut, W, rule, seed):
    words, cut = ballots(P, W, seed), min(cut, P)
    parts = [part for part in (words[:cut], words[cut:]) if len(part)]
    total = counters(P, W)
    counting.count(np.ascontiguousarray(parts[0]), total)
    for part in parts[1:]:
        other = counters(P, W)
        counting.count(np.ascontiguousarray(part), other)
        counting.merge(other, total)
    assert np.array_equal(counting.decide(total, P, W, Tie(rule, 1, 2)), reference.majority(words, rule, 1, 2))


def test_counters_count():
    P, W = 37, BLOCK + 3
    words, planes = ballots(P, W), counters(P, W)
    counting.count(words, planes)
    flat = planes.transpose(1, 0, 2).reshape(planes.shape[1], -1)[:, :W]
    counted = sum(reference.bits_of(plane).astype(int) << k for k, plane in enumerate(flat))
    assert np.array_equal(counted, reference.bits_of(words).sum(axis=0))


def test_majority_of_majorities_is_no_majority():
    """Why counters are merged and not votes."""
    words = bits.pack(np.array([-1.0], np.float32)), bits.pack(np.array([1.0], np.float32))
    minus, plus = words
    groups = np.stack([minus, minus, plus]), np.stack([minus, minus, plus]), np.stack([plus, plus, plus])
    of_majorities = counting.majority(np.stack([counting.majority(group) for group in groups]))
    assert of_majorities[0] != counting.majority(np.concatenate(groups))[0]


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: counting.majority(ballots(2, 2), "coin"), "tie: .*'coin'"),
        (lambda: counting.majority(ballots(0, 2)), "words: no voters"),
        (lambda: counting.majority(ballots(2, 2).astype(np.int64)), "words: .*int64"),
        (lambda: counting.majority(ballots(2, 4)[:, ::2]), "words: "),
        (lambda: counting.majority(ballots(2, 2), "zero", out=np.zeros(2, np.uint64)), "out: "),
        (lambda: counting.count(ballots(4, 2), counters(3, 2)), "planes: 2 planes cannot count 4"),
        (lambda: counting.merge(counters(2, 2), counters(4, 2)), "b: "),
        (lambda: counting.decide(counters(2, 2), 2, 1000), "planes: "),
    ],
)
def test_faulty_arguments_are_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()
