"""The features of DistributedDataParallel, each as users take it."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.join import Join
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.functional import mse_loss
from torch.utils.checkpoint import checkpoint
from way import INPUTS, RATE, STEPS, Table, Way, batch, learn, loss_of, network, steps, taught, unseen_loss

import mpisign

FEATURES = Table()


@FEATURES.works("the plain script")
def plain(way: Way) -> float:
    return learn(way, way.parallel(network()))


class Heads(nn.Module):
    """A body, and a head for each rank."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.body = nn.Sequential(nn.Linear(INPUTS, 16), nn.Tanh())
        self.heads = nn.ModuleList([nn.Linear(16, 1) for _ in range(heads)])

    def forward(self, inputs: torch.Tensor, head: int = 0) -> torch.Tensor:
        return self.heads[head](self.body(inputs))


@FEATURES.works("`find_unused_parameters=True`, each rank trains a head of its own",
                "a rank that has no gradient for a parameter abstains on it")  # fmt: skip
def heads_of_their_own(way: Way) -> float:
    model = Heads(way.size)
    replica = way.parallel(model, find_unused_parameters=True)
    optimizer = way.optimizer(model.parameters())
    for step in steps(optimizer):
        inputs, targets = batch(way.rank, step)
        optimizer.zero_grad()
        mse_loss(replica(inputs, way.rank), targets * (-1) ** way.rank).backward()
        optimizer.step()
    with torch.no_grad():
        inputs, targets = batch(99, 99, 256)
        return way.mean(mse_loss(model(inputs, way.rank), targets * (-1) ** way.rank))


@FEATURES.works("`find_unused_parameters=True`, a part that no rank uses", "it does not move, but for weight decay")
def a_part_that_nobody_uses(way: Way) -> float:
    model = Heads(2)
    before = model.heads[1].weight.detach().clone()
    reached = learn(way, way.parallel(model, find_unused_parameters=True))
    if way.voting:
        assert torch.equal(before, model.heads[1].weight), "the unused head has moved"
    return reached


@FEATURES.works("`static_graph=True`")
def static_graph(way: Way) -> float:
    return learn(way, way.parallel(network(), static_graph=True))


@FEATURES.works("`static_graph=True`, a part that no rank uses")
def static_graph_unused(way: Way) -> float:
    return learn(way, way.parallel(Heads(2), static_graph=True))


@FEATURES.works("`with ddp.join():` and batches of uneven number", "ranks that are done abstain")
def join(way: Way) -> float:
    replica = way.parallel(network())
    with replica.join():
        return learn(way, replica, count=STEPS - 8 * way.rank)


@FEATURES.works("accumulation under `no_sync()`")
def no_sync(way: Way) -> float:
    replica = way.parallel(network())
    optimizer = way.optimizer(replica.parameters())
    for step in steps(optimizer):
        optimizer.zero_grad()
        with replica.no_sync():
            loss_of(way, replica, 2 * step).backward()
        loss_of(way, replica, 2 * step + 1).backward()
        optimizer.step()
    return unseen_loss(replica.module)


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.first, self.last, self.reentrant = nn.Linear(INPUTS, 16), nn.Linear(16, 1), reentrant

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = checkpoint(self.first, inputs, use_reentrant=self.reentrant)
        return self.last(torch.tanh(hidden))


@FEATURES.works("activation checkpointing")
def checkpointing(way: Way) -> float:
    return learn(way, way.parallel(Checkpointed(reentrant=False)))


@FEATURES.works("reentrant activation checkpointing with `static_graph=True`")
def reentrant_checkpointing(way: Way) -> float:
    replica = way.parallel(Checkpointed(reentrant=True), static_graph=True)

    def loss(step: int) -> torch.Tensor:
        inputs, targets = batch(way.rank, step)
        return mse_loss(replica(inputs.requires_grad_()), targets)

    return learn(way, replica, loss=loss)


@FEATURES.works("`torch.compile` of the model, DDP around it")
def compiled_inside(way: Way) -> float:
    model = network()
    return learn(way, way.parallel(torch.compile(model, backend="aot_eager")))


@FEATURES.works("`torch.compile` of the DDP model")
def compiled_outside(way: Way) -> float:
    replica = way.parallel(network())
    compiled = torch.compile(replica, backend="aot_eager")
    return learn(way, replica, loss=lambda step: loss_of(way, compiled, step))


@FEATURES.works("`ZeroRedundancyOptimizer` over SGD")
def zero_redundancy(way: Way) -> float:
    replica = way.parallel(network())
    made = {"optimizer_class": torch.optim.SGD if way.voting else torch.optim.AdamW, "lr": RATE}
    return learn(way, replica, ZeroRedundancyOptimizer(replica.parameters(), **made))


@FEATURES.works("`ZeroRedundancyOptimizer` and `Join([ddp, optimizer])`")
def zero_redundancy_join(way: Way) -> float:
    replica = way.parallel(network())
    made = {"optimizer_class": torch.optim.SGD if way.voting else torch.optim.AdamW, "lr": RATE}
    optimizer = ZeroRedundancyOptimizer(replica.parameters(), **made)
    with Join([replica, optimizer]):
        return learn(way, replica, optimizer, count=STEPS - 8 * way.rank)


@FEATURES.refused("`delay_all_reduce_named_params`", "DDP averages these without the hook", says="delay")
def delayed_parameters(way: Way) -> float:
    model = network()
    delayed = [("2.weight", model[2].weight), ("2.bias", model[2].bias)]
    replica = way.parallel(model, delay_all_reduce_named_params=delayed, param_to_hook_all_reduce=model[0].weight)
    return learn(way, replica)


def pictures(rank: int, step: int, count: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, targets = batch(rank, step, count)
    return inputs.view(count, 2, 2, 2), targets


def convolutions(*, norm: type[nn.Module] | None = None) -> nn.Sequential:
    torch.manual_seed(7)
    norms = [norm(8)] if norm else []
    return nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), *norms, nn.Tanh(), nn.Flatten(), nn.Linear(32, 1))


def learn_pictures(way: Way, model: nn.Module, **ddp: bool) -> float:
    replica = way.parallel(model, **ddp)
    optimizer = way.optimizer(model.parameters())
    for step in steps(optimizer):
        inputs, targets = pictures(way.rank, step, 16)
        optimizer.zero_grad()
        mse_loss(replica(inputs), targets).backward()
        optimizer.step()
    model.eval()
    inputs, targets = pictures(99, 99, 256)
    with torch.no_grad():
        return way.mean(mse_loss(model(inputs), targets))


@FEATURES.works("`memory_format=torch.channels_last`")
def channels_last(way: Way) -> float:
    return learn_pictures(way, convolutions().to(memory_format=torch.channels_last))


@FEATURES.works("BatchNorm, `broadcast_buffers=True`")
def batch_norm(way: Way) -> float:
    return learn_pictures(way, convolutions(norm=nn.BatchNorm2d))


@FEATURES.works("BatchNorm, `broadcast_buffers=False`")
def buffers_of_their_own(way: Way) -> float:
    return learn_pictures(way, convolutions(norm=nn.BatchNorm2d), broadcast_buffers=False)


@FEATURES.works("`gradient_as_bucket_view=True`")
def bucket_views(way: Way) -> float:
    return learn(way, way.parallel(network(), gradient_as_bucket_view=True))


@FEATURES.works("many buckets, which DDP divides anew after the first step")
def divided_anew(way: Way) -> float:
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(INPUTS, 3000), nn.Tanh(), nn.Linear(3000, 101), nn.Tanh(), nn.Linear(101, 1))
    return learn(way, way.parallel(model, bucket_cap_mb=0.01), way.optimizer(model.parameters(), 3e-3))


@FEATURES.works("DDP over a part of the ranks", "the state gets the same process group")
def subgroup(way: Way) -> float:
    part = dist.new_group(list(range(way.size - 1)))
    loss = torch.zeros(())
    if way.rank < way.size - 1:
        loss = torch.tensor(
            learn(way, way.parallel(network(), process_group=part, vote={"where": part, "tie": "zero"}))
        )
    dist.broadcast(loss, 0)
    return loss.item()


@FEATURES.refused("DDP over a part of the ranks, the state over all of them", "hand the state DDP's group",
                  says="ranks|group")  # fmt: skip
def another_group(way: Way) -> float:
    pairs = [dist.new_group([rank]) for rank in range(way.size)]
    return learn(way, way.parallel(network(), process_group=pairs[way.rank]))


@FEATURES.works("several DDP models, a state each")
def several_models(way: Way) -> float:
    first, second = network(INPUTS, 4), nn.Linear(4, 1)
    one, two = way.parallel(first), way.parallel(second)
    optimizers = [way.optimizer(first.parameters()), way.optimizer(second.parameters())]
    for step in steps(*optimizers):
        inputs, targets = batch(way.rank, step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        mse_loss(two(one(inputs)), targets).backward()
        for optimizer in optimizers:
            optimizer.step()
    return unseen_loss(nn.Sequential(first, second))


@FEATURES.works("one state for two DDP models", "a state each tells more of each")
def one_state_for_two(way: Way) -> float:
    models = [network(), network()]
    first, second = way.parallel(models[0]), nn.parallel.DistributedDataParallel(models[1])
    if way.voting:
        second.register_comm_hook(way.state, mpisign.vote_hook)
    optimizer = way.optimizer([*first.parameters(), *second.parameters()])
    for step in steps(optimizer):
        inputs, targets = batch(way.rank, step)
        optimizer.zero_grad()
        (mse_loss(first(inputs), targets) + mse_loss(second(inputs), -targets)).backward()
        optimizer.step()
    return unseen_loss(models[0])


@FEATURES.works("a collective in forward and backward, as SyncBatchNorm's")
def collective_in_backward(way: Way) -> float:
    from torch.distributed.nn.functional import all_reduce

    class Centered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.first = network(16), nn.Linear(INPUTS, 16)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            hidden = self.first(inputs)
            return self.net(hidden - all_reduce(hidden.mean(0)) / way.size)

    replica = way.parallel(Centered(), bucket_cap_mb=1e-5)
    return learn(way, replica, way.optimizer(replica.parameters(), RATE / 2))


@FEATURES.works("native mixed precision of autocast, bfloat16, without a scaler")
def autocast(way: Way) -> float:
    replica = way.parallel(network())

    def loss(step: int) -> torch.Tensor:
        inputs, targets = batch(way.rank, step)
        with torch.autocast("cpu", torch.bfloat16):
            predicted = replica(inputs)
        return mse_loss(predicted.float(), targets)

    return learn(way, replica, loss=loss)


@FEATURES.works("double backward: a gradient penalty by `torch.autograd.grad(create_graph=True)`")
def gradient_penalty(way: Way) -> float:
    model = network()
    replica = way.parallel(model)
    optimizer = way.optimizer(model.parameters())
    for step in steps(optimizer):
        inputs, _ = batch(way.rank, step)
        inputs.requires_grad_()
        predicted = replica(inputs)
        [slope] = torch.autograd.grad(predicted.sum(), inputs, create_graph=True)
        optimizer.zero_grad()
        (mse_loss(predicted, taught(inputs.detach())) + 1e-4 * slope.square().sum()).backward()
        optimizer.step()
    return unseen_loss(model)


@FEATURES.does_not_apply("SyncBatchNorm on the CPU", "torch has it on devices alone; its collectives are its own",
                         says="SyncBatchNorm")  # fmt: skip
def sync_batch_norm(way: Way) -> float:
    return learn_pictures(way, convolutions(norm=nn.SyncBatchNorm))


@FEATURES.does_not_apply("a second communication hook on a model", "DDP takes one", says="register_comm_hook|once")
def second_hook(way: Way) -> float:
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    replica = way.parallel(network())
    replica.register_comm_hook(None, allreduce_hook)
    replica.register_comm_hook(None, allreduce_hook)
    return learn(way, replica)
