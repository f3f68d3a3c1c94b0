"""The momentum outlives a new division into buckets, a checkpoint, and belongs to its parameters."""

import pytest
import torch

from mpisign.voting.bucket import HeldBucket
from mpisign.voting.momentum import Momentum


def bucket(parameters, number=0):
    return HeldBucket(number, torch.zeros(sum(p.numel() for p in parameters)), list(parameters), True)


@pytest.fixture
def parameters():
    return [torch.zeros(2, 3), torch.zeros(()), torch.zeros(5)]


def test_a_bucket_begins_with_zeros_and_keeps_what_is_written(parameters):
    momentum, whole = Momentum(), bucket(parameters)
    momentum.of(whole).copy_(torch.arange(12.0))
    assert momentum.of(whole) is momentum.of(bucket(parameters))
    assert momentum.of(bucket(parameters[:1], 1)).tolist() == [0, 1, 2, 3, 4, 5]  # taken over
    assert not Momentum().of(whole).any()


def test_a_new_division_into_buckets_takes_the_momentum_over(parameters):
    momentum = Momentum()
    momentum.of(bucket(parameters)).copy_(torch.arange(12.0))
    divided = [bucket(parameters[2:]), bucket(parameters[:2], 1)]  # another order, and number 0 is another bucket
    assert momentum.of(divided[0]).tolist() == [7, 8, 9, 10, 11]
    assert momentum.of(divided[1]).tolist() == [0, 1, 2, 3, 4, 5, 6]
    momentum.of(divided[1])[6] = -1.0
    assert momentum.of(bucket(parameters)).tolist() == [0, 1, 2, 3, 4, 5, -1, 7, 8, 9, 10, 11]


def test_a_state_is_a_copy_and_is_loaded_by_order(parameters):
    momentum = Momentum()
    momentum.of(bucket(parameters[:2])).copy_(torch.arange(7.0))
    state = momentum.state_dict(parameters)
    momentum.of(bucket(parameters[:2])).zero_()
    assert [None if part is None else part.tolist() for part in state] == [[0, 1, 2, 3, 4, 5], [6], None]
    again, others = Momentum(), [torch.ones_like(parameter) for parameter in parameters]
    again.of(bucket(others)).fill_(9.0)
    again.load_state_dict(state, others)
    assert again.of(bucket(others)).tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 0, 0, 0, 0]
    with pytest.raises(ValueError, match=r"zip\(\)"):
        again.load_state_dict(state, others[:2])


def test_momentum_goes_with_its_parameter():
    momentum, parameter = Momentum(), torch.zeros(3)
    momentum.of(bucket([parameter])).fill_(1.0)
    assert momentum.state_dict([torch.zeros(3)]) == [None]
    assert momentum.state_dict([parameter])[0].tolist() == [1, 1, 1]
