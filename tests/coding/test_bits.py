import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from reference import awkward

from mpisign.coding import bits
from mpisign.coding.rules import Signum
from mpisign.coding.sizes import words_for

SIZES = [0, 1, 63, 64, 65, 127, 128, 64 * 5 + 1, 64 * 128 * 3 + 1]
floats = hnp.arrays(np.float32, st.integers(0, 400), elements=st.floats(width=32))


@pytest.mark.parametrize("n", SIZES)
def test_pack_equals_the_reference(n):
    assert np.array_equal(bits.pack(awkward(n)), reference.pack(awkward(n)))


@given(floats)
def test_pack_is_the_sign_and_unpack_its_inverse(x):
    words = bits.pack(x)
    assert np.array_equal(words, reference.pack(x))
    assert np.array_equal(bits.unpack(words, len(x)), np.where(x < 0, -1, 1))


def test_zero_minus_zero_and_nan_are_positive():
    assert bits.pack(np.array([0.0, -0.0, np.nan, -np.nan, 1, -1], np.float32)).tolist() == [0b100000]


@given(floats, st.integers(0, 2**32))
def test_padding_is_zero(x, seed):
    words = bits.pack(-np.abs(x) - 1)
    assert reference.bits_of(words).sum() == len(x) - np.isnan(x).sum()
    full = np.full_like(words, 2**64 - 1)
    bits.clear_padding(full, len(x))
    assert reference.bits_of(full).sum() == len(x)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("rows", [1, 2])
def test_unpack_equals_the_reference(n, rows):
    words = np.random.default_rng(n).integers(0, 2**64, (rows, words_for(n)), np.uint64)
    words = words if rows == 2 else words[0]
    out = np.full(n, 7, np.float32)
    assert bits.unpack(words, n, out) is out
    assert np.array_equal(out, reference.unpack(words, n))


def test_torch_tensors_are_taken_and_changed_in_place():
    m, g = torch.zeros(70), -torch.ones(70)
    bits.sign(g, np.empty(2, np.uint64), rule=Signum(0.5), momentum=m)
    assert torch.equal(m, torch.full((70,), -0.5))
    out = torch.empty(70)
    bits.unpack(bits.pack(m), 70, out)
    assert torch.equal(out, -torch.ones(70))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: bits.pack(np.zeros(3)), "x: .*float64"),
        (lambda: bits.pack(np.zeros((2, 3), np.float32)), "x: "),
        (lambda: bits.pack(np.zeros(6, np.float32)[::2]), "x: .*not contiguous"),
        (lambda: bits.pack(np.zeros(65, np.float32), np.zeros(1, np.uint64)), "out: "),
        (lambda: bits.unpack(np.zeros(1, np.uint64), 65), "words: "),
        (lambda: bits.unpack(np.zeros((3, 2), np.uint64), 65), "words: "),
        (lambda: bits.unpack(np.zeros(1, np.uint64), 3, np.zeros(4, np.float32)), "out: "),
    ],
)
def test_faulty_arguments_are_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()
