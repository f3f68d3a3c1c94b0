"""What is kept of overlapped exchanges covers each bucket in the iterations that were asked for."""

import numpy as np
import pytest
import torch

from mpisign.coding.sizes import words_for
from mpisign.methods.method import Ready, Terms
from mpisign.methods.pieces import SAMPLE, Pieces
from mpisign.voting.bucket import HeldBucket


def kept_words(pieces, step, n):
    bucket, ready = HeldBucket(0, torch.arange(n, dtype=torch.float32), [torch.empty(n)], True), Ready(lambda *of: None)
    pieces.begin(ready, step)
    pieces.keep(ready, bucket)
    (part,) = pieces.evidence()
    expected = [bucket.tensor.numpy()[words.start * 64 : words.stop * 64] for words in part.words]
    assert np.array_equal(part.gradient, np.concatenate(expected))
    return np.concatenate([np.arange(words.start, words.stop) for words in part.words])


@pytest.mark.parametrize("n", [0, 1, 64, 65, 128, 129, 64 * SAMPLE, 64 * (SAMPLE + 2) + 1, 64 * 10 * SAMPLE + 3])
@pytest.mark.parametrize(("iterations", "every"), [(1, 1), (3, 1), (7, 1), (100, 1), (4, 100)])
def test_they_cover_a_bucket(n, iterations, every):
    pieces, W = Pieces(Terms(seed=5), iterations, every=every), words_for(n)
    of_steps = [kept_words(pieces, step * every, n) for step in range(11, 11 + iterations)]
    assert set(np.concatenate(of_steps)) == set(range(W))
    for words in of_steps:
        assert len(set(words)) == len(words) <= max(SAMPLE, -(-W // iterations)) + 2
        assert not W or {0, W - 1} <= set(words)
    again = Pieces(Terms(seed=5), iterations, every=every)
    assert all(np.array_equal(kept_words(again, (11 + i) * every, n), words) for i, words in enumerate(of_steps))
