"""Training loops as they are written: scalers, clipping, accumulation, optimizers, batches that go wrong."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import mse_loss
from way import INPUTS, RATE, STEPS, Table, Way, batch, learn, loss_of, network, steps, unseen_loss

import mpisign

LOOPS = Table()


def with_scaler(
    way: Way, *, enabled: bool = True, adamw: bool = False, before_step: Callable[[Any, Any], Any] | None = None
) -> float:
    """Learn with a GradScaler."""
    model = network()
    replica, scaler = way.parallel(model), torch.amp.GradScaler("cpu", enabled=enabled)
    optimizer = torch.optim.AdamW(model.parameters(), RATE) if adamw else way.optimizer(model.parameters())
    for step in steps(optimizer):
        optimizer.zero_grad()
        scaler.scale(loss_of(way, replica, step)).backward()
        if before_step:
            before_step(scaler, optimizer)
        scaler.step(optimizer)
        scaler.update()
    return unseen_loss(model)


def clip(_scaler: Any, optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        nn.utils.clip_grad_norm_(group["params"], 1.0)


@LOOPS.refused("`GradScaler`", "it divides the votes by its scale, and cannot see an overflow: leave it out, and train "
               "in bfloat16", says="scaler|unscale")  # fmt: skip
def grad_scaler(way: Way) -> float:
    return with_scaler(way)


@LOOPS.refused("`scaler.unscale_` and `clip_grad_norm_`", "as above", says="scaler|unscale")
def grad_scaler_and_clipping(way: Way) -> float:
    def unscale_and_clip(scaler: Any, optimizer: torch.optim.Optimizer) -> None:
        scaler.unscale_(optimizer)
        clip(scaler, optimizer)

    return with_scaler(way, before_step=unscale_and_clip)


@LOOPS.works("`GradScaler(enabled=False)`")
def disabled_scaler(way: Way) -> float:
    return with_scaler(way, enabled=False)


@LOOPS.refused("`clip_grad_norm_` after backward", "the norm of n signs is always sqrt(n): leave it out", says="clip")
def clipped_norm(way: Way) -> float:
    replica = way.parallel(network())
    return learn(way, replica, behind_backward=lambda: nn.utils.clip_grad_norm_(replica.parameters(), 1.0))


@LOOPS.works("`clip_grad_norm_(parameters, inf)`, to log the norm", "the norm is that of the signs")
def logged_norm(way: Way) -> float:
    replica = way.parallel(network())

    def log() -> None:
        sum(parameter.grad.norm() ** 2 for parameter in replica.parameters()).sqrt().item()
        nn.utils.clip_grad_norm_(replica.parameters(), float("inf"))

    return learn(way, replica, behind_backward=log)


@LOOPS.works("`clip_grad_value_(1.0)` after backward", "signs are within it: it does nothing")
def clipped_value(way: Way) -> float:
    replica = way.parallel(network())
    return learn(way, replica, behind_backward=lambda: nn.utils.clip_grad_value_(replica.parameters(), 1.0))


@LOOPS.works("gradients clipped before the vote, by `parameter.register_hook`")
def clipped_before(way: Way) -> float:
    model = network()
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: gradient.clamp(-1, 1))
    replica = way.parallel(model)
    return learn(way, replica)


@LOOPS.refused("accumulation without `no_sync()`", "a vote would be added to a vote: accumulate under `ddp.no_sync()`",
               says="no_sync")  # fmt: skip
def accumulation(way: Way) -> float:
    model = network()
    replica = way.parallel(model)
    optimizer = way.optimizer(model.parameters())
    for step in steps(optimizer):
        optimizer.zero_grad()
        for part in range(4):
            (loss_of(way, replica, 4 * step + part) / 4).backward()
        optimizer.step()
    return unseen_loss(model)


@LOOPS.refused("accumulation with `no_sync()` around backward alone", "DDP looks at it in forward: put that inside too",
               says="no_sync")  # fmt: skip
def no_sync_too_late(way: Way) -> float:
    model = network()
    replica = way.parallel(model)
    optimizer = way.optimizer(model.parameters())
    for step in steps(optimizer):
        optimizer.zero_grad()
        loss = loss_of(way, replica, 2 * step)
        with replica.no_sync():
            loss.backward()
        loss_of(way, replica, 2 * step + 1).backward()
        optimizer.step()
    return unseen_loss(model)


@LOOPS.refused("two losses, a backward each, one step", "add the losses, or put the first under `ddp.no_sync()`",
               says="no_sync|add")  # fmt: skip
def two_backwards(way: Way) -> float:
    model = network()
    replica = way.parallel(model)
    optimizer = way.optimizer(model.parameters())
    for step in steps(optimizer):
        optimizer.zero_grad()
        loss_of(way, replica, 2 * step).backward()
        loss_of(way, replica, 2 * step + 1).backward()
        optimizer.step()
    return unseen_loss(model)


@LOOPS.refused(
    "`zero_grad()` forgotten", "a vote would be added to a vote: call it in each step", says="zero_grad|no_sync"
)
def no_zero_grad(way: Way) -> float:
    model = network()
    replica = way.parallel(model)
    optimizer = way.optimizer(model.parameters())
    for step in steps(optimizer):
        loss_of(way, replica, step).backward()
        optimizer.step()
    return unseen_loss(model)


@LOOPS.works("two forwards, one backward (siamese)")
def two_forwards(way: Way) -> float:
    replica = way.parallel(network())
    return learn(way, replica, loss=lambda step: loss_of(way, replica, 2 * step) + loss_of(way, replica, 2 * step + 1))


@LOOPS.works("`zero_grad(set_to_none=False)`, before backward or behind the step")
def zeroed_in_place(way: Way) -> float:
    model = network()
    replica = way.parallel(model, gradient_as_bucket_view=True)
    optimizer = way.optimizer(model.parameters())
    for step in steps(optimizer):
        loss_of(way, replica, step).backward()
        optimizer.step()
        (optimizer if step % 2 else model).zero_grad(set_to_none=False)
    return unseen_loss(model)


@LOOPS.works("a NaN batch on one rank", "its gradient counts as 0 in that step, is counted in `statistics()`, and "
             "warned of once", warns="finite")  # fmt: skip
def nan_batch(way: Way) -> float:
    model = network()
    reached = with_a_nan(way, model)
    for momentum in way.state.state_dict(model.parameters())["momentum"] if way.voting else ():
        assert momentum.isfinite().all(), "a momentum is not finite"
    return reached


def with_a_nan(way: Way, model: nn.Module, **vote: str) -> float:
    """Learn, with a NaN in one batch of rank 1."""
    replica = way.parallel(model, vote=vote)

    def loss(step: int) -> torch.Tensor:
        inputs, targets = batch(way.rank, step)
        if way.voting and way.rank == 1 and step == STEPS // 4:
            inputs[3, 2] = torch.nan
        return mse_loss(replica(inputs), targets)

    return learn(way, replica, loss=loss)


@LOOPS.refused('a NaN batch and `nonfinite="raise"`', "it stops, on all ranks", says="finite")
def nan_batch_raises(way: Way) -> float:
    return with_a_nan(way, network(), nonfinite="raise")


@LOOPS.works("an empty batch on one rank", "its loss is NaN, its gradient 0: this rank abstains in that step")
def empty_batch(way: Way) -> float:
    replica = way.parallel(network())

    def loss(step: int) -> torch.Tensor:
        inputs, targets = batch(way.rank, step, 0 if way.voting and way.rank == 1 and step % 10 == 5 else 16)
        return mse_loss(replica(inputs), targets)

    return learn(way, replica, loss=loss)


@LOOPS.works("a loss multiplied by 0 on a rank that has nothing to learn", "this rank abstains in that step")
def loss_times_zero(way: Way) -> float:
    replica = way.parallel(network())
    return learn(way, replica, loss=lambda step: loss_of(way, replica, step) * (step % way.size == way.rank))


def adversarial(way: Way, replica: nn.Module, model: nn.Module, discard) -> float:
    """Learn as the discriminator of a GAN: a generator's pass goes through it, whose gradient of it is thrown away."""
    generator = nn.Linear(INPUTS, INPUTS)
    optimizer = way.optimizer(model.parameters())
    other = torch.optim.SGD(generator.parameters(), 1e-3)
    for step in steps(optimizer):
        inputs, targets = batch(way.rank, step)
        optimizer.zero_grad()
        other.zero_grad()
        discard(lambda: mse_loss(replica(generator(inputs)), -5 * targets).backward())  # noqa: B023
        other.step()
        optimizer.zero_grad()
        loss_of(way, replica, step).backward()
        optimizer.step()
    return unseen_loss(model)


@LOOPS.refused("a backward whose votes are thrown away, as the discriminator's in a GAN's other half",
               "`requires_grad_(False)`, `no_sync()` or `rollback()`: see below", says="no_sync|rollback")  # fmt: skip
def discarded(way: Way) -> float:
    model = network()
    replica = way.parallel(model)
    return adversarial(way, replica, model, lambda backward: backward())


@LOOPS.works(
    "a backward whose gradient is discarded, `revocable=True`", "it is taken back by itself", warns="taken back"
)
def discarded_taken_back(way: Way) -> float:
    model = network()
    replica = way.parallel(model, vote={"revocable": True})
    return adversarial(way, replica, model, lambda backward: backward())


@LOOPS.works("a backward whose gradient is discarded, under `no_sync()` (the discriminator in a GAN's other half)",
             "the cheapest way: nothing is exchanged")  # fmt: skip
def discarded_unsynchronized(way: Way) -> float:
    model = network()
    replica = way.parallel(model)

    def discard(backward):
        with replica.no_sync():
            backward()

    return adversarial(way, replica, model, discard)


@LOOPS.works("a backward whose gradient is discarded, and `state.rollback()`", "with `VoteState(revocable=True)`")
def discarded_rolled_back(way: Way) -> float:
    model = network()
    replica = way.parallel(model, vote={"revocable": True})

    def discard(backward):
        backward()
        if way.voting:
            way.state.rollback()

    return adversarial(way, replica, model, discard)


@LOOPS.works("a backward whose gradient is discarded by `requires_grad_(False)` on the DDP model")
def discarded_frozen(way: Way) -> float:
    model = network()
    replica = way.parallel(model)

    def discard(backward):
        model.requires_grad_(False)
        backward()
        model.requires_grad_(True)

    return adversarial(way, replica, model, discard)


@LOOPS.refused("AdamW on the votes", "a sign has no size to adapt to: `mpisign.optimizer`, or SGD without momentum",
               says="SGD|momentum|optimizer")  # fmt: skip
def adamw(way: Way) -> float:
    replica = way.parallel(network())
    return learn(way, replica, torch.optim.AdamW(replica.parameters(), RATE))


@LOOPS.refused("SGD with momentum on the votes", "the momentum is in the state, before the sign", says="momentum")
def sgd_with_momentum(way: Way) -> float:
    replica = way.parallel(network())
    return learn(way, replica, torch.optim.SGD(replica.parameters(), RATE, momentum=0.9))


@LOOPS.refused("LBFGS", "its line search asks for gradients, not for votes", says="SGD|momentum|optimizer")
def lbfgs(way: Way) -> float:
    model = network()
    replica, optimizer = way.parallel(model), torch.optim.LBFGS(model.parameters(), 0.1, max_iter=4)

    def closure(step: int) -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(way, replica, step)
        loss.backward()
        return loss

    for step in range(8):
        optimizer.step(lambda: closure(step))  # noqa: B023
    return unseen_loss(model)


@LOOPS.works("`optimizer.step(closure)`, and accumulation under `no_sync()`, as Lightning does")
def closures(way: Way) -> float:
    model = network()
    replica = way.parallel(model)
    optimizer = way.optimizer(model.parameters())
    for step in steps(optimizer):
        optimizer.zero_grad()
        with replica.no_sync():
            loss_of(way, replica, 2 * step).backward()

        def closure(step: int = step) -> torch.Tensor:
            loss = loss_of(way, replica, 2 * step + 1)
            loss.backward()
            return loss

        if step % 2:
            optimizer.step(closure=closure)
        else:
            optimizer.step(closure)
    return unseen_loss(model)


@LOOPS.works("`mpisign.optimizer(parameters, lr, weight_decay=...)`")
def right_settings(way: Way) -> float:
    replica = way.parallel(network())
    made = (
        mpisign.optimizer(replica.parameters(), RATE, weight_decay=1e-4)
        if way.voting
        else way.optimizer(replica.parameters())
    )
    return learn(way, replica, made)


@LOOPS.refused(
    "PyTorch's minGPT-ddp: scaler, clipping and AdamW in one step", "as above", says="scaler|unscale|clip|SGD"
)
def mingpt(way: Way) -> float:
    return with_scaler(way, adamw=True, before_step=clip)


@LOOPS.works("parameter groups with rates of their own, weight decay, `foreach=True`, a schedule")
def parameter_groups(way: Way) -> float:
    model = network()
    replica = way.parallel(model)
    groups = [
        {"params": model[0].parameters(), "weight_decay": 1e-4},
        {"params": model[2].parameters(), "lr": RATE / 2},
    ]
    made = torch.optim.SGD(groups, RATE, foreach=True) if way.voting else way.optimizer(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(made, STEPS)
    for step in range(STEPS):
        made.zero_grad()
        loss_of(way, replica, step).backward()
        made.step()
        schedule.step()
    return unseen_loss(model)


@LOOPS.works("evaluation between steps, under `no_grad` and `inference_mode`, `ddp.eval()`")
def evaluation_between(way: Way) -> float:
    replica, grades = way.parallel(network()), itertools.cycle((torch.inference_mode, torch.no_grad))

    def evaluate() -> None:
        replica.eval()
        with next(grades)():
            loss_of(way, replica, 500)
        replica.train()

    return learn(way, replica, behind_step=evaluate)


@LOOPS.works("`dist.all_reduce` of the loss between forward and backward, on DDP's own group")
def reduced_loss(way: Way) -> float:
    model = network()
    replica = way.parallel(model)
    optimizer = way.optimizer(model.parameters())
    for step in steps(optimizer):
        optimizer.zero_grad()
        loss = loss_of(way, replica, step)
        shown = loss.detach().clone()
        work = dist.all_reduce(shown, async_op=True)
        loss.backward()
        work.wait()
        optimizer.step()
    return unseen_loss(model)


@LOOPS.works("anomaly detection")
def anomaly_detection(way: Way) -> float:
    with torch.autograd.set_detect_anomaly(True):
        return learn(way, way.parallel(network()), count=20)


@LOOPS.works("dense for the first steps, then the vote: the hook is registered late")
def registered_late(way: Way) -> float:
    model = network()
    replica = nn.parallel.DistributedDataParallel(model)
    way.models.append(model)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, foreach=False)
    for step in range(5):
        optimizer.zero_grad()
        loss_of(way, replica, step).backward()
        optimizer.step()
    if way.voting:
        way.register(replica)
    return learn(way, replica)


@LOOPS.refused("gradients scaled by hand behind backward", "a smaller rate does the same", says="scale")
def scaled_by_hand(way: Way) -> float:
    replica = way.parallel(network())

    def scale() -> None:
        for parameter in replica.parameters():
            parameter.grad.mul_(0.5)

    made = way.optimizer(replica.parameters(), 2 * RATE if way.voting else RATE)
    return learn(way, replica, made, behind_backward=scale)


@LOOPS.works("two states and losses in turn, as actor and critic")
def in_turn(way: Way) -> float:
    models = [network(), network()]
    replicas = [way.parallel(model) for model in models]
    optimizers = [way.optimizer(model.parameters()) for model in models]
    for step in steps(*optimizers):
        for replica, optimizer in zip(replicas, optimizers, strict=True):
            optimizer.zero_grad()
            loss_of(way, replica, step).backward()
            optimizer.step()
    return (unseen_loss(models[0]) + unseen_loss(models[1])) / 2


@LOOPS.works("truncated backpropagation through time: a state detached between steps")
def truncated(way: Way) -> float:
    torch.manual_seed(7)
    model = nn.ModuleDict({"rnn": nn.RNNCell(INPUTS, 16), "out": nn.Linear(16, 1)})

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = model

        def forward(self, inputs, hidden):
            hidden = self.parts["rnn"](inputs, hidden)
            return self.parts["out"](hidden), hidden

    replica = way.parallel(Step())
    optimizer, hidden = way.optimizer(model.parameters(), RATE / 3), torch.zeros(16, 16)
    for step in steps(optimizer):
        inputs, targets = batch(way.rank, step)
        optimizer.zero_grad()
        predicted, hidden = replica(inputs, hidden.detach())
        mse_loss(predicted, targets).backward()
        optimizer.step()
    inputs, targets = batch(99, 99, 16)
    with torch.no_grad():
        return float(mse_loss(replica.module(inputs, torch.zeros(16, 16))[0], targets))
