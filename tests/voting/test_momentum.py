"""The momentum outlives a new division into buckets, a checkpoint, and belongs to its parameters."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

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
    assert momentum.of(whole) is momentum.of(bucket(parameters)) is momentum.next_of(whole)
    momentum.turn()
    assert momentum.of(bucket(parameters[:1], 1)).tolist() == [0, 1, 2, 3, 4, 5]  # taken over
    assert not Momentum().of(whole).any()


@pytest.mark.parametrize("revocable", [False, True])
def test_a_new_division_into_buckets_takes_the_momentum_over(parameters, revocable):
    momentum = Momentum(revocable=revocable)
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
    assert [None if part is None else part.tolist() for part in state] == [[[0, 1, 2], [3, 4, 5]], 6, None]
    again, others = Momentum(), [torch.ones_like(parameter) for parameter in parameters]
    again.of(bucket(others)).fill_(9.0)
    again.load_state_dict(state, others)
    assert again.of(bucket(others)).tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 0, 0, 0, 0]


def test_what_does_not_fit_is_refused_and_nothing_is_changed(parameters):
    momentum = Momentum()
    momentum.of(bucket(parameters)).copy_(torch.arange(12.0))
    state = momentum.state_dict(parameters)
    with pytest.raises(ValueError, match="saved for 3 parameters, here are 2"):
        momentum.load_state_dict(state, parameters[:2])
    others = [*parameters[:2], torch.zeros(1, 5)]
    with pytest.raises(ValueError, match=r"parameter 2 has shape \[1, 5\], its momentum is of \[5\]"):
        momentum.load_state_dict(state, others)
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"1 saved values of parameter 1 are not finite.*load an older one"):
            momentum.load_state_dict([state[0], torch.tensor(value), state[2]], parameters)
    assert momentum.of(bucket(parameters)).tolist() == list(range(12))
    parameters[2].data = torch.zeros(7)
    with pytest.raises(ValueError, match=r"parameter 2 of bucket 0 has shape \[7\], its momentum is of \[5\]"):
        momentum.of(bucket(parameters))
    parameters[0].data = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"parameter 0 of bucket 0 has shape \[3, 2\], its momentum is of \[2, 3\]"):
        momentum.of(bucket(parameters))


def test_momentum_goes_with_its_parameter():
    momentum, parameter = Momentum(), torch.zeros(3)
    momentum.of(bucket([parameter])).fill_(1.0)
    assert momentum.state_dict([torch.zeros(3)]) == [None]
    assert momentum.state_dict([parameter])[0].tolist() == [1, 1, 1]


def test_the_default_type_of_torch_does_not_matter(parameters):
    torch.set_default_dtype(torch.float64)
    try:
        momentum = Momentum(revocable=True)
        assert momentum.of(bucket(parameters)).dtype == momentum.next_of(bucket(parameters)).dtype == torch.float32
        state = momentum.state_dict(parameters)
        assert all(part.dtype == torch.float32 for part in state)
        momentum.load_state_dict([part.double() for part in state], parameters)
        assert momentum.of(bucket(parameters)).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


CHANNELS_LAST = {"memory_format": torch.channels_last}
COUNT = torch.arange(24.0).view(2, 3, 2, 2)  # by logical coordinate
IN_MEMORY = COUNT.permute(0, 2, 3, 1).flatten()  # of a channels_last tensor


def picture(**form):
    return torch.zeros(2, 3, 2, 2).to(**form)


@pytest.mark.parametrize("before", [{}, CHANNELS_LAST])
@pytest.mark.parametrize("after", [{}, CHANNELS_LAST])
@pytest.mark.parametrize("by", ["checkpoint", "conversion"])
def test_the_memory_format_of_a_parameter_is_not_that_of_its_momentum(before, after, by):
    momentum, parameter, other = Momentum(), picture(**before), torch.zeros(1)
    momentum.of(bucket([other, parameter]))[1:] = IN_MEMORY if before else COUNT.flatten()
    (saved,) = momentum.state_dict([parameter])
    assert torch.equal(saved, COUNT)
    assert saved.is_contiguous()
    if by == "checkpoint":
        momentum, parameter = Momentum(), picture(**after)
        momentum.load_state_dict([saved, None], [parameter, other])
    else:
        parameter.data = parameter.to(memory_format=after.get("memory_format", torch.contiguous_format))
    assert torch.equal(momentum.of(bucket([other, parameter]))[1:], IN_MEMORY if after else COUNT.flatten())


def test_a_parameter_that_is_not_dense_has_its_momentum_in_logical_order():
    momentum, parameter = Momentum(), torch.zeros(3, 4)[:, ::2].t()
    momentum.of(bucket([parameter])).copy_(torch.arange(6.0))
    assert momentum.state_dict([parameter])[0].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_ddps_own_buckets_are_read_right_through_every_conversion(alone):
    """A momentum that is set to the gradient of each bucket is the parameters' gradient, by logical coordinate."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 2, (1, 2)), nn.Flatten(), nn.Linear(2 * 6 * 5, 3))
    parameters, momentum = list(model.parameters()), Momentum()

    def hook(momentum, bucket):
        momentum.of(bucket).copy_(bucket.buffer())
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    def check(replica):  # DDP divides the buckets anew after the first step
        for _ in range(3):
            model.zero_grad()
            replica(torch.randn(2, 3, 8, 8)).square().sum().backward()
            for parameter, kept in zip(parameters, momentum.state_dict(parameters), strict=True):
                assert torch.equal(parameter.grad, kept)

    def replicate():
        replica = DistributedDataParallel(model, bucket_cap_mb=0.0001)
        replica.register_comm_hook(momentum, hook)
        return replica

    check(replicate())
    model.to(memory_format=torch.channels_last)
    check(replicate())
    model.to(memory_format=torch.contiguous_format)
    replica = replicate()
    check(replica)
    model.to(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="wrap the model in DistributedDataParallel anew"):
        check(replica)  # whose buckets lie as before


def step(momentum, buckets, value):
    """What a vote does: the new momentum is a function of the one before."""
    for one in buckets:
        before = momentum.of(one)
        torch.add(before, value, out=momentum.next_of(one))
    momentum.turn()


def flat(momentum, parameters):
    state = momentum.state_dict(parameters)
    return [None if part is None else part.flatten().tolist() for part in state]


def test_a_step_is_taken_back(parameters):
    momentum, whole = Momentum(revocable=True), [bucket(parameters)]
    step(momentum, whole, 1.0)
    momentum.rollback()
    assert flat(momentum, parameters) == [[0] * 6, [0], [0] * 5]  # before the first step
    step(momentum, whole, 1.0)
    step(momentum, whole, 2.0)
    assert flat(momentum, parameters) == [[3] * 6, [3], [3] * 5]
    momentum.rollback()
    assert flat(momentum, parameters) == [[1] * 6, [1], [1] * 5]
    with pytest.raises(ValueError, match="no step to take back"):
        momentum.rollback()  # the one before is no longer there
    step(momentum, whole, 4.0)
    assert flat(momentum, parameters) == [[5] * 6, [5], [5] * 5]


def test_nothing_is_copied_from_step_to_step(parameters):
    momentum, whole = Momentum(revocable=True), bucket(parameters)
    first, second = momentum.of(whole), momentum.next_of(whole)
    for current, other in ((second, first), (first, second)):
        momentum.turn()
        assert momentum.of(whole) is current
        assert momentum.next_of(whole) is other


@pytest.mark.parametrize("looked_at", [False, True])
def test_a_step_is_taken_back_where_the_buckets_are_divided_anew(parameters, looked_at):
    momentum = Momentum(revocable=True)
    step(momentum, [bucket(parameters)], 1.0)
    divided = [bucket(parameters[2:]), bucket(parameters[:2], 1)]
    if looked_at:
        assert [momentum.of(one).unique().tolist() for one in divided] == [[1], [1]]
    momentum.rollback()
    assert flat(momentum, parameters) == [[0] * 6, [0], [0] * 5]
    step(momentum, divided, 2.0)
    step(momentum, divided, 4.0)
    momentum.rollback()
    assert flat(momentum, parameters) == [[2] * 6, [2], [2] * 5]


def test_only_what_has_taken_part_in_a_step_is_taken_back(parameters):
    momentum, parts = Momentum(revocable=True), [bucket(parameters[:2]), bucket(parameters[2:], 1)]
    step(momentum, parts, 1.0)
    step(momentum, parts[:1], 1.0)
    assert flat(momentum, parameters) == [[2] * 6, [2], [1] * 5]
    assert momentum.of(bucket(parameters)).tolist() == [2] * 7 + [1] * 5  # and in buckets divided anew
    momentum.rollback()
    assert flat(momentum, parameters) == [[1] * 6, [1], [1] * 5]


def test_a_step_that_has_come_to_no_end_is_taken_back_alone(parameters):
    momentum, parts = Momentum(revocable=True), [bucket(parameters[:2]), bucket(parameters[2:], 1)]
    step(momentum, parts, 1.0)
    momentum.next_of(parts[0]).fill_(9.0)  # and then backward raises
    momentum.rollback()
    assert flat(momentum, parameters) == [[1] * 6, [1], [1] * 5]
    step(momentum, parts, 1.0)
    assert flat(momentum, parameters) == [[2] * 6, [2], [2] * 5]


def test_what_is_loaded_is_not_taken_back(parameters):
    momentum, whole = Momentum(revocable=True), [bucket(parameters)]
    step(momentum, whole, 1.0)
    saved = momentum.state_dict(parameters)
    step(momentum, whole, 1.0)
    momentum.load_state_dict(saved, parameters)
    with pytest.raises(ValueError, match="no step to take back"):
        momentum.rollback()
    step(momentum, whole, 4.0)
    momentum.rollback()
    assert flat(momentum, parameters) == [[1] * 6, [1], [1] * 5]


def test_taking_back_asks_for_revocable(parameters):
    momentum = Momentum()
    step(momentum, [bucket(parameters)], 1.0)
    with pytest.raises(ValueError, match="revocable=True"):
        momentum.rollback()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_momentum_follows_its_parameter_to_another_device(parameters):
    momentum = Momentum()
    momentum.of(bucket(parameters)).copy_(torch.arange(12.0))
    for parameter in parameters:
        parameter.data = parameter.cuda()
    moved = HeldBucket(0, torch.zeros(12, device="cuda"), parameters, True)
    assert momentum.of(moved).is_cuda
    assert momentum.of(moved).tolist() == list(range(12))
