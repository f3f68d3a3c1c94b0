"""What is tried of `vote_across`, by 4 ranks as 2 nodes of 2: `torchrun --nproc-per-node 4 sharded.py FILE NAME...`.

FILE gets a line for each of the functions that are named: what each rank raised, or None.
"""

import contextlib
import faulthandler
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard

sys.path.insert(0, str(Path(__file__).parent.parent))
import reference

import mpisign

NODES, INSIDE = 2, 2
LR, DECAY, SEED = 0.05, 0.1, 5
PATIENCE = 100  # seconds, after which what hangs ends the run


class Net(nn.Module):
    """Sizes that do not divide by the ranks of a node, one of a single row, a frozen weight, and a part to leave out.

    The parts are not in the order in which they are used.
    """

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(10, 1)
        self.first = nn.Linear(7, 65)
        self.aside = nn.Linear(65, 3)
        self.second = nn.Sequential(nn.Linear(65, 10), nn.Tanh())
        self.scale = nn.Parameter(torch.ones(1))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x, extra=True):
        hidden = torch.tanh(self.first(x))
        out = self.head(self.second(hidden)) * self.scale
        return out + self.aside(hidden).sum(1, keepdim=True) if extra else out


MODULES = "second", "aside", "first", "head"  # in the order of their votes; what is left comes last


def sharded(mesh, modules=MODULES, *, seed=SEED, **options):
    torch.manual_seed(seed)
    model = Net()
    for name in modules:
        fully_shard(model.get_submodule(name), mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def voting(mesh, modules=MODULES, *, shard=None, **options):
    """Return a model, sharded and voted on, and its state."""
    model = sharded(mesh["shard"], modules, **(shard or {}))
    state = mpisign.VoteState(mesh.get_group("replicate"), **options)
    mpisign.vote_across(model, state)
    return model, state


def batch(step, rank=None):
    noise = torch.Generator().manual_seed(1000 * step + (dist.get_rank() if rank is None else rank))
    return torch.randn(4, 7, generator=noise)


def loss_of(model, step, extra=True):
    return model(batch(step), extra).square().mean()


def local(tensor):
    return None if tensor is None else tensor.detach().to_local().numpy().copy()


def weights(model):
    return [local(parameter).tobytes() for parameter in model.parameters()]


def gathered(thing):
    things = [None] * dist.get_world_size()
    dist.all_gather_object(things, thing)
    return things


def same_between_nodes(model):
    every = gathered(weights(model))
    half = len(every) // NODES
    assert every[:half] == every[half:], "the nodes differ"


def train(model, steps, extra=lambda step: True):
    optimizer = mpisign.optimizer(model.parameters(), lr=LR, weight_decay=DECAY)
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, step, extra(step)).backward()
        optimizer.step()
    return model


class Truth:
    """The votes by plain NumPy, from the gradients of a model that nobody shards."""

    def __init__(self, model, modules, rule, *, tie, zeros):
        self.rule, self.tie, self.zeros = rule, tie, zeros
        self.twin = Net()
        self.dims = {name: p.placements[0].dim for name, p in model.named_parameters()}
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        own = [[name for name in names if name.startswith(f"{module}.")] for module in modules]
        self.buckets = [*own, [name for name in names if not name.startswith(tuple(f"{m}." for m in modules))]]
        self.momenta = {}

    def gradients(self, model, step, extra=True):
        """Return what each rank's own gradient is at the model's weights, by name, a list of ranks."""
        full = {name: parameter.full_tensor().detach().clone() for name, parameter in model.named_parameters()}
        self.twin.load_state_dict(full)
        self.twin.zero_grad()
        loss_of(self.twin, step, extra).backward()
        mine = {name: np.zeros(p.shape, "f4") if p.grad is None else p.grad.numpy()
                for name, p in self.twin.named_parameters()}  # fmt: skip
        return gathered(mine)

    def shard(self, every, node, name):
        """Return this rank's shard of a node's mean."""
        mean = (every[INSIDE * node][name] + every[INSIDE * node + 1][name]) / np.float32(2)
        rows, index = -(-mean.shape[self.dims[name]] // INSIDE), dist.get_rank() % INSIDE
        return mean.take(range(*slice(index * rows, (index + 1) * rows).indices(mean.shape[self.dims[name]])),
                         self.dims[name]).reshape(-1)  # fmt: skip

    def votes(self, every, step):
        """Return the votes on this rank's shards by name, and move all nodes' momenta."""
        found = {}
        for number, names in enumerate(self.buckets):
            words, zeros, absent = [], [], []
            for node in range(NODES):
                shards = [self.shard(every, node, name) for name in names]
                gone = [not shard.any() for shard in shards]
                before = self.momenta.get((node, number), np.zeros(sum(map(len, shards)), "f4"))
                key = reference.dither_key(SEED, node, number, step)
                signs, moved, zero, _ = reference.sign(np.concatenate(shards), self.rule, before, key)
                if self.zeros == "random":
                    signs = reference.fill_zeros(signs, zero, key)
                sizes = [len(shard) for shard in shards]
                self.momenta[node, number] = np.where(np.repeat(gone, sizes), before, moved)
                words.append(signs), zeros.append(zero), absent.append(gone)
            voted = reference.majority(
                np.stack(words), self.tie, SEED, (step << 16) + number, absent=np.array(absent), sizes=sizes,
                abstains=np.stack(zeros) if self.zeros == "abstain" else None,
            )  # fmt: skip
            nobody = np.repeat(np.all(absent, axis=0), sizes)
            signs = np.where(nobody, 0, reference.unpack(voted, sum(sizes)))
            found |= dict(zip(names, np.split(signs, np.cumsum(sizes)[:-1]), strict=True))
        return found


def compare(mesh, rule=None, *, extra=lambda step: True, modules=MODULES, tie="positive", zeros="positive", **options):
    """Train by the vote, and compare the votes of each step and the weights with the truth, bit for bit."""
    rule = rule or mpisign.Signum(0.9)
    model, state = voting(mesh, modules, rule=rule, tie=tie, zeros=zeros, seed=SEED, **options)
    truth = Truth(model, modules, rule, tie=tie, zeros=zeros)
    optimizer = mpisign.optimizer(model.parameters(), lr=LR, weight_decay=DECAY)
    for step in range(4):
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        before = {name: local(parameter) for name, parameter in model.named_parameters()}
        every = truth.gradients(model, step, extra(step))
        loss_of(model, step, extra(step)).backward()
        voted = truth.votes(every, step)
        for name, votes in voted.items():
            found = local(model.get_parameter(name).grad)
            assert np.array_equal(found.reshape(-1), votes), f"step {step}, {name}: {found} for {votes}"
        optimizer.step()
        assert state.steps == step + 1
        same_between_nodes(model)
        for name, values in before.items():
            votes = voted[name].reshape(values.shape) + DECAY * values if name in voted else 0
            assert np.allclose(local(model.get_parameter(name)), values - LR * votes, atol=1e-6), f"{step}, {name}"
    state.close()


@contextlib.contextmanager
def refused(words):
    with pytest.raises(ValueError, match=words) as raised:
        yield
    assert "\n" not in str(raised.value)


def signum(mesh):
    compare(mesh)


def signsgd_with_coins(mesh):
    compare(mesh, mpisign.SignSGD(), tie="random", exchange="allgather")


def lion_without_ties(mesh):
    compare(mesh, mpisign.Lion(), tie="zero", exchange="server")


def noisy(mesh):
    compare(mesh, mpisign.Noisy(0.01), tie="zero", schedule="serial")


def stochastic(mesh):
    compare(mesh, mpisign.Stochastic(0.5), zeros="random")


def abstaining(mesh):
    compare(mesh, mpisign.SignSGD(), zeros="abstain", tie="zero", extra=lambda step: step < 2)


def revocable(mesh):
    compare(mesh, revocable=True, schedule="serial")


def a_module_without_a_gradient(mesh):
    compare(mesh, extra=lambda step: step % 2 == 0)


def a_module_without_a_gradient_on_one_node(mesh):
    compare(mesh, tie="zero", extra=lambda step: step % 2 == 0 or dist.get_rank() < INSIDE)


def one_module(mesh):
    compare(mesh, modules=())


def sharded_by_columns(mesh):
    columns = {"shard_placement_fn": lambda p: Shard(p.ndim - 1 if p.shape[-1] % INSIDE == 0 else 0)}
    compare(mesh, shard=columns | {"reshard_after_forward": False})


def offloaded(mesh):
    compare(mesh, shard={"offload_policy": CPUOffloadPolicy(pin_memory=False)})


def mixed_precision(mesh):
    for reduced in (torch.float32, torch.bfloat16, torch.float16):  # float16 is divided before and behind
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=reduced)
        model, state = voting(mesh, shard={"mp_policy": policy})
        train(model, range(3))
        same_between_nodes(model)
        for parameter in model.parameters():
            assert parameter.grad is None or parameter.grad.dtype == torch.float32
            assert parameter.grad is None or set(local(parameter.grad).flat) <= {-1.0, 0.0, 1.0}
        state.close()


def learns(mesh):
    model, state = sharded(mesh["shard"]), mpisign.VoteState(mesh.get_group("replicate"), tie="zero")
    with torch.no_grad():
        loss_of(model, 0)  # and it is unsharded
    mpisign.vote_across(model, state)
    optimizer = mpisign.optimizer(model.parameters(), lr=1e-2)
    losses = []
    for step in range(60):
        optimizer.zero_grad()
        x = batch(step % 4)
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    same_between_nodes(model)
    first, last = np.mean(gathered(losses), axis=0).reshape(-1, 4).mean(axis=1)[[0, -1]]
    assert last < first / 4, f"{first} became {last}"
    assert state.statistics().agreement > 0.5
    state.close()


def resumes(mesh):
    rule = mpisign.Noisy(0.01, mpisign.Lion())
    model, state = voting(mesh, rule=rule)
    train(model, range(3))
    saved = [parameter.detach().clone() for parameter in model.parameters()]
    with tempfile.TemporaryFile() as file:
        torch.save(state.state_dict(model.parameters()), file)
        train(model, range(3, 6))
        file.seek(0)
        kept = torch.load(file)
    state.close()
    again, state = voting(mesh, rule=rule, shard={"seed": 1})
    with torch.no_grad():
        for parameter, value in zip(again.parameters(), saved, strict=True):
            parameter.copy_(value)
    state.load_state_dict(kept, again.parameters())
    train(again, range(3, 6))
    assert weights(again) == weights(model)
    state.close()


def accumulates(mesh):
    found = []
    for times in (1, 2):
        model, state = voting(mesh, rule=mpisign.SignSGD())
        for left in reversed(range(times)):
            model.set_requires_gradient_sync(not left)
            loss_of(model, 0).backward()
        assert state.steps == 1
        found.append([local(parameter.grad) for parameter in model.parameters() if parameter.requires_grad])
        state.close()
    for once, twice in zip(*found, strict=True):
        assert np.array_equal(once, twice)


def frozen_on_the_way(mesh):
    model, state = voting(mesh)
    train(model, range(1))
    before = local(model.first.weight)
    model.first.weight.requires_grad_(False)
    train(model, range(1, 3))
    assert np.array_equal(local(model.first.weight), before)
    model.first.weight.requires_grad_(True)
    train(model, range(3, 4))
    assert not np.array_equal(local(model.first.weight), before)
    same_between_nodes(model)
    state.close()


def goes_on_after_a_failed_backward(mesh):
    model, state = voting(mesh, revocable=True)
    train(model, range(1))

    def fail(gradient):
        raise KeyError("mine")

    handle = model.first.register_full_backward_hook(lambda *_: fail(None))
    model.zero_grad()
    with pytest.raises(KeyError):
        loss_of(model, 1).backward()
    handle.remove()
    model.reset_iter_state()
    state.rollback()
    train(model, range(2, 4))
    same_between_nodes(model)
    assert state.steps == 3
    state.close()


def taken_back(mesh):
    model, state = voting(mesh, revocable=True)
    train(model, range(1))
    model.zero_grad()
    before = state.state_dict(model.parameters())
    loss_of(model, 1).backward()
    state.rollback()
    for kept, now in zip(before["momentum"], state.state_dict(model.parameters())["momentum"], strict=True):
        assert kept is now is None or torch.equal(kept, now)
    model.zero_grad()
    train(model, range(1, 2))
    same_between_nodes(model)
    state.close()


def refuses_a_model_that_is_not_sharded(mesh):
    with (
        mpisign.VoteState(mesh.get_group("replicate")) as state,
        refused("nothing of the model is sharded"),
    ):
        mpisign.vote_across(Net(), state)


def refuses_a_mesh_of_two_dimensions(mesh):
    model = sharded(mesh)
    with mpisign.VoteState(mesh.get_group("replicate")) as state, refused(r"mesh of 2 dim.*mesh=mesh\[\"shard\"\]"):
        mpisign.vote_across(model, state)


def refuses_ranks_among_which_nothing_is_replicated(mesh):
    model = sharded(init_device_mesh("cpu", (4,)))
    with mpisign.VoteState() as state, refused("nothing is replicated among them: mesh = init_device_mesh"):
        mpisign.vote_across(model, state)
    model = sharded(mesh["shard"])
    with mpisign.VoteState(mesh.get_group("shard")) as state, refused("nothing is replicated among them"):
        mpisign.vote_across(model, state)


def refuses_other_ranks(mesh):
    model = sharded(mesh["shard"])
    with mpisign.VoteState() as state, refused(r"among ranks \[0, 1, 2, 3\], which do not hold.*get_group"):
        mpisign.vote_across(model, state)
    crossed = [dist.new_group(ranks) for ranks in ([0, 3], [1, 2])]
    with mpisign.VoteState(crossed[dist.get_rank() in (1, 2)]) as state, refused("which do not hold the same shard"):
        mpisign.vote_across(model, state)
    alone = [dist.new_group([rank]) for rank in range(4)]
    with mpisign.VoteState(alone[dist.get_rank()]) as state, refused("votes alone, though the model is sharded over 2"):
        mpisign.vote_across(model, state)


def refuses_a_second_time(mesh):
    model, state = voting(mesh)
    with refused("is voted on already: call it once"):
        mpisign.vote_across(model, state)
    state.close()


def refuses_what_is_not_sharded(mesh):
    model = Net()
    fully_shard(model, mesh=mesh["shard"], ignored_params={model.first.bias})
    with (
        mpisign.VoteState(mesh.get_group("replicate")) as state,
        refused("first.bias is not sharded, so nothing"),
    ):
        mpisign.vote_across(model, state)


def refuses_the_meta_device(mesh):
    with torch.device("meta"):
        model = Net()
    fully_shard(model, mesh=mesh["shard"])
    with mpisign.VoteState(mesh.get_group("replicate")) as state, refused("is on the meta device: call to_empty"):
        mpisign.vote_across(model, state)


def refuses_other_shapes(mesh):
    model = nn.Linear(3, 4 if dist.get_rank() < INSIDE else 6)
    fully_shard(model, mesh=mesh["shard"])
    with (
        mpisign.VoteState(mesh.get_group("replicate")) as state,
        refused("do not have the same shards: is it one"),
    ):
        mpisign.vote_across(model, state)


def refuses_nodes_that_differ(mesh):
    model, state = voting(mesh, shard={"seed": dist.get_rank() // INSIDE})
    with refused("the parameters differ from node to node: start all from one seed"):
        train(model, range(1))
    state.close()


def refuses_votes_that_are_added_to(mesh):
    model, _state = voting(mesh)
    train(model, range(2))
    with refused(r"a gradient was added to votes.*set_requires_gradient_sync\(False\)"):
        loss_of(model, 2).backward()


def refuses_parameters_that_are_thawed(mesh):
    model, _state = voting(mesh)
    train(model, range(1))
    model.frozen.requires_grad_(True)
    with refused("requires a gradient that did not when it was called"):
        train(model, range(1, 2))


def refuses_parameters_that_are_replaced(mesh):
    model, _state = voting(mesh)
    train(model, range(1))
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    with refused("gradients went without a vote, for parameters are others"):
        train(model, range(1, 2))


def refuses_to_leave_momentum_out(mesh):
    model, state = voting(mesh)
    train(model, range(1))
    with torch.no_grad():
        loss_of(model, 0)
    with refused("an evaluation has left parameters of the model unsharded.*model.reshard"):
        state.state_dict(model.parameters())
    model.reshard()
    parts = state.state_dict(model.parameters())["momentum"]
    assert [part is not None for part in parts] == [parameter.requires_grad for parameter in model.parameters()]
    state.close()


def refuses_an_optimizer_for_gradients(mesh):
    model, _state = voting(mesh)
    optimizer = torch.optim.AdamW(model.parameters())
    loss_of(model, 0).backward()
    with refused("AdamW: is made for gradients, not for votes"):
        optimizer.step()


def refuses_clipping(mesh):
    model, _state = voting(mesh)
    optimizer = mpisign.optimizer(model.parameters(), lr=LR)
    loss_of(model, 0).backward()
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(0.3)
    refusals = []
    try:
        optimizer.step()
    except ValueError as error:
        refusals.append(str(error))
    # It looks at one parameter a step, of which a rank may have nothing.
    assert "as by clip_grad_norm_" in str(gathered(refusals))


def refuses_votes_that_nobody_used(mesh):
    model, _state = voting(mesh)
    train(model, range(1))
    for step in (1, 2):
        model.zero_grad()
        with refused("were not used by any optimizer step") if step == 2 else contextlib.nullcontext():
            loss_of(model, step).backward()


def refuses_what_is_not_finite(mesh):
    model, _state = voting(mesh, nonfinite="raise")
    with refused("not finite"):
        (loss_of(model, 0) * float("nan")).backward()


def attempt(name, mesh):
    try:
        globals()[name](mesh)
    except Exception as error:
        return f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
    return None


def over_mpi(mesh):
    """2 nodes of one rank each."""
    from mpi4py import MPI

    with mpisign.VoteState(MPI.COMM_WORLD, exchange="reduce") as state:
        model = sharded(mesh["shard"])
        mpisign.vote_across(model, state)
        train(model, range(3))
        same_between_nodes(model)
        assert state.steps == 3
    with mpisign.VoteState(MPI.COMM_SELF) as state, refused("votes alone, though the model is sharded over 1"):
        mpisign.vote_across(sharded(mesh["shard"]), state)


def start():
    """Start a process group, as it is done under torchrun or mpirun; return what ends it."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        dist.init_process_group("gloo")
        return dist.destroy_process_group
    from mpi4py import MPI

    from mpisign.ranks.group import process_group

    group = process_group(MPI.COMM_WORLD, "gloo", one_node=True)
    group.__enter__()
    return lambda: group.__exit__(None, None, None)


def main(path, *names):
    torch.set_num_threads(1)
    end = start()
    mesh = init_device_mesh("cpu", (NODES, dist.get_world_size() // NODES), mesh_dim_names=("replicate", "shard"))
    for name in names:
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        raised = gathered(attempt(name, mesh))
        if dist.get_rank() == 0:
            with open(path, "a") as file:
                file.write(json.dumps({"name": name, "raised": raised}) + "\n")
    faulthandler.cancel_dump_traceback_later()
    end()


if __name__ == "__main__":
    main(*sys.argv[1:])
