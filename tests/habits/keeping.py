"""What is saved, loaded and copied."""

import copy
import io
import pickle

import pytest
import torch
import torch.distributed as dist
from features import convolutions, pictures
from torch import nn
from torch.nn.functional import mse_loss
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from way import RATE, STEPS, Table, Way, batch, learn, network, unseen_loss

import mpisign

KEEPING = Table()


def on_all(way: Way, fault: str) -> None:
    """Raise on all ranks what one of them was told, as a launcher ends all of them."""
    faults = [None] * way.size
    dist.all_gather_object(faults, fault)
    if any(faults):
        raise ValueError(next(filter(None, faults)))


@KEEPING.works(
    "a checkpoint of each rank's `state_dict`",
    "goes on with the same bits, but for coins (exact zeros, ties): see below",
)
def resumed(way: Way) -> float:
    model = network()
    replica = way.parallel(model)
    optimizer = way.optimizer(model.parameters())

    def halves(replica, optimizer, begin):
        for step in range(begin, begin + STEPS // 2):
            inputs, targets = batch(way.rank, step)
            for group in optimizer.param_groups:
                group["lr"] = RATE * (1 - step / STEPS)
            optimizer.zero_grad()
            mse_loss(replica(inputs), targets).backward()
            optimizer.step()

    halves(replica, optimizer, 0)
    kept = [model.state_dict(), optimizer.state_dict(), way.state.state_dict(model.parameters()) if way.voting else 0]
    file = io.BytesIO()
    torch.save(kept, file)
    halves(replica, optimizer, STEPS // 2)

    file.seek(0)
    kept = torch.load(file, weights_only=True)
    other = network()
    other.load_state_dict(kept[0])
    again = way.parallel(other)
    optimizer = way.optimizer(other.parameters())
    optimizer.load_state_dict(kept[1])
    if way.voting:
        way.state.load_state_dict(kept[2], other.parameters())
    halves(again, optimizer, STEPS // 2)
    # DDP's means are not the same bits in buckets that are divided in another way. Votes are.
    same = all(map(torch.equal, model.parameters(), other.parameters()))
    assert same or not way.voting, "the stop was not without trace"
    return unseen_loss(other)


@KEEPING.refused("rank 0's `state.state_dict` loaded by all ranks", "save one file a rank", says="rank")
def anothers_momentum(way: Way) -> float:
    model = network()
    replica = way.parallel(model)
    learn(way, replica, count=10)
    kept = [way.state.state_dict(model.parameters()) if way.voting else None]
    dist.broadcast_object_list(kept, 0)
    fault = ""
    if way.voting:
        try:
            way.state.load_state_dict(kept[0], model.parameters())
        except ValueError as error:
            fault = str(error)
    on_all(way, fault)
    return learn(way, replica)


@KEEPING.refused("a `state_dict` of another model", "it says which parameter has another shape", says="shape|number")
def anothers_shapes(way: Way) -> float:
    model, other = network(), network(outputs=2)
    replica = way.parallel(model)
    learn(way, replica, count=2)
    if way.voting:
        other = way.parallel(other)
        way.state.load_state_dict(way.states[0].state_dict(model.parameters()), other.parameters())
    return learn(way, replica)


@KEEPING.works("momentum saved by a contiguous model, loaded into a `channels_last` one, and back")
def other_memory_format(way: Way) -> float:
    def part(model, replica, optimizer, begin):
        for step in range(begin, begin + STEPS // 2):
            for group in optimizer.param_groups:
                group["lr"] = RATE * (1 - step / STEPS)
            inputs, targets = pictures(way.rank, step, 16)
            optimizer.zero_grad()
            mse_loss(replica(inputs), targets).backward()
            optimizer.step()

    first = convolutions()
    replica = way.parallel(first)
    optimizer = way.optimizer(first.parameters())
    part(first, replica, optimizer, 0)
    second = copy.deepcopy(first).to(memory_format=torch.channels_last)
    assert second[0].weight.stride() != first[0].weight.stride()
    if way.voting:
        kept = way.state.state_dict(first.parameters())
    again = way.parallel(second)
    later = way.optimizer(second.parameters())
    later.load_state_dict(optimizer.state_dict())
    if way.voting:
        way.state.load_state_dict(kept, second.parameters())
        for one, two in zip(kept["momentum"], way.state.state_dict(second.parameters())["momentum"], strict=True):
            assert torch.equal(one, two)
    part(second, again, later, STEPS // 2)
    part(first, replica, optimizer, STEPS // 2)
    for one, two in zip(first.parameters(), second.parameters(), strict=True):
        assert not way.voting or (one - two).abs().mean() < 0.01, (one - two).abs().mean()
    inputs, targets = pictures(99, 99, 256)
    with torch.no_grad():
        return float(mse_loss(second(inputs), targets))


@KEEPING.works("`copy.deepcopy(ddp)`", "the copy computes; to train it, it needs a state of its own")
def deep_copy(way: Way) -> float:
    model = network()
    replica = way.parallel(model)
    loss = learn(way, replica)
    again = copy.deepcopy(replica)
    inputs, _ = batch(9, 9)
    assert torch.equal(again.module(inputs), model(inputs))
    return loss


@KEEPING.works("an average of the weights: `AveragedModel(ddp)`, EMA")
def averaged(way: Way) -> float:
    replica = way.parallel(network())
    average = AveragedModel(replica, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    learn(way, replica, behind_step=lambda: average.update_parameters(replica))
    return unseen_loss(average.module.module)


@KEEPING.works("`torch.save(ddp)`, `pickle.dumps(state)`", "ranks and momentum are left behind: a copy says so")
def pickled(way: Way) -> float:
    replica = way.parallel(network())
    loss = learn(way, replica)
    torch.save(replica, io.BytesIO())
    if way.voting:
        copied = pickle.loads(pickle.dumps(way.state))  # noqa: S301 (its own)
        repr(copied)
        with pytest.raises(ValueError, match="state_dict"):
            copied.state_dict([])
    return loss


@KEEPING.refused("a vote by a state that is closed", "make a new one", says="closed")
def closed(way: Way) -> float:
    replica = way.parallel(network())
    learn(way, replica, count=2)
    way.close()
    way.close()  # twice is harmless
    return learn(way, replica)


@KEEPING.works("`fp16_compress_wrapper(vote_hook)`: hooks around the hook")
def wrapped_hook(way: Way) -> float:
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_wrapper

    model = network()
    replica = nn.parallel.DistributedDataParallel(model)
    way.models.append(model)
    if way.voting:
        way.states.append(mpisign.VoteState(way.where))
        replica.register_comm_hook(way.state, fp16_compress_wrapper(mpisign.vote_hook))
    return learn(way, replica)


@KEEPING.works("`with mpisign.VoteState() as state:`")
def context_manager(way: Way) -> float:
    replica = nn.parallel.DistributedDataParallel(network())
    way.models.append(replica.module)
    if not way.voting:
        return learn(way, replica)
    with mpisign.VoteState(way.where) as state:
        replica.register_comm_hook(state, mpisign.vote_hook)
        return learn(way, replica)
