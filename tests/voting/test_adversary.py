import numpy as np
import pytest
import reference

from mpisign import pack
from mpisign.voting.adversary import ADVERSARIES, SCALE, Traitor, traitors


def honest(n=130, seed=0):
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


def lie(name, gradient, step=0, traitor=None, rank=3, bucket=1):
    """Return what a traitor sends for a gradient: its words and the dense form."""
    words, dense = pack(gradient), gradient.copy()
    (traitor or Traitor(name, 7, rank=rank)).lie_in_words(words, len(gradient), bucket=bucket, step=step)
    Traitor(name, 7, rank=rank).lie_in_gradient(dense, bucket, step=step)
    return words, dense


@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 1000])
@pytest.mark.parametrize("name", ADVERSARIES)
def test_no_adversary_touches_the_padding_and_a_turn_can_be_repeated(name, n):
    gradient = honest(n)
    words, dense = lie(name, gradient)
    assert np.array_equal(words, reference.pack(reference.unpack(words, n)))
    again = lie(name, gradient)
    assert np.array_equal(words, again[0])
    assert np.array_equal(dense, again[1])


def test_invert_and_scale_send_the_opposite():
    gradient = honest()
    for name, factor in (("invert", -1), ("scale", SCALE)):
        words, dense = lie(name, gradient)
        assert np.array_equal(words, pack(-gradient))
        assert np.array_equal(dense, gradient * np.float32(factor))


def test_zero_sends_what_a_gradient_of_zero_would():
    words, dense = lie("zero", honest())
    assert not words.any()
    assert not dense.any()


def test_random_differs_from_rank_to_rank_and_step_to_step():
    gradient = honest()
    sent = [lie("random", gradient, step, rank=rank)[0].tobytes() for step in range(3) for rank in range(3)]
    assert len(set(sent)) == 9


def test_colluders_send_one_direction_in_every_step():
    sent = [lie("collude", honest(seed=10 * step + rank), step, rank=rank) for step in range(3) for rank in range(3)]
    assert len({words.tobytes() for words, _ in sent}) == 1
    assert len({pack(dense).tobytes() for _, dense in sent}) == 1
    assert lie("collude", honest(), bucket=2)[0].tobytes() != sent[0][0].tobytes()


@pytest.mark.parametrize("name", ["random", "collude"])
def test_a_false_gradient_is_as_long_as_the_true_one(name):
    gradient = honest(100_000)
    assert np.linalg.norm(lie(name, gradient)[1]) == pytest.approx(np.linalg.norm(gradient), rel=0.02)


def test_delayed_sends_the_step_before():
    traitor, gradients = Traitor("delayed", 7, rank=3), [honest(seed=step) for step in range(4)]
    sent = [lie("delayed", gradient, step, traitor)[0] for step, gradient in enumerate(gradients)]
    assert np.array_equal(sent[0], pack(gradients[0]))
    for step in range(1, 4):
        assert np.array_equal(sent[step], pack(gradients[step - 1]))
    assert np.array_equal(lie("delayed", gradients[3], 3, traitor)[0], pack(gradients[2]))  # asked again
    shorter = honest(5)
    assert np.array_equal(lie("delayed", shorter, 4, traitor)[0], pack(shorter))  # the buckets were divided anew


def test_traitors_are_drawn_by_seed_and_rank_0_last():
    assert traitors(0, 5, seed=0) == []
    assert traitors(5, 5, seed=0) == [0, 1, 2, 3, 4]
    assert traitors(1, 1, seed=0) == [0]
    assert all(0 not in traitors(3, 7, seed=seed) for seed in range(20))
    assert len({tuple(traitors(3, 7, seed=seed)) for seed in range(20)}) > 5
    with pytest.raises(ValueError, match="adversaries: 3 of 2 ranks"):
        traitors(3, 2, seed=0)
