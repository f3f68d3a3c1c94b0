"""What ruins a training on votes is refused, by a line that names the cure; what does not is let through.

The state is a stand-in, its vote the signs of one rank: the guard looks at neither momentum nor exchange.
"""

import contextlib
import copy
import gc
import warnings
import weakref

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
from torch.optim import optimizer as torch_optimizer
from torch.utils.checkpoint import checkpoint

import mpisign
from mpisign.voting import misuse
from mpisign.voting.bucket import HeldBucket
from mpisign.voting.guard import Guard


@pytest.fixture(scope="module", autouse=True)
def one_rank():
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(autouse=True)
def nothing_left():
    yield
    for state in [*alive, State()]:
        state.guard.close()
    assert not torch_optimizer._global_optimizer_pre_hooks


alive = weakref.WeakSet()


class State:
    def __init__(self, members=(0,), *, revocable=False):
        self.revocable, self.rolled_back, self.backwards = revocable, 0, 0
        self.guard = Guard(self, members)
        alive.add(self)

    def rollback(self):
        self.rolled_back += 1
        self.guard.forget()


def signs(state, bucket):
    if bucket.index() == 0:
        state.guard.begin(bucket)
        state.backwards += 1
    buffer = bucket.buffer()
    if buffer.any():
        state.guard.take_in()
    buffer.copy_(torch.where(buffer < 0, -1.0, 1.0))
    state.guard.voted(bucket)
    future = torch.futures.Future()
    future.set_result(buffer)
    return future


def network(width=33):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(width, 3000), nn.ReLU(), nn.Linear(3000, 101), nn.ReLU(), nn.Linear(101, 3))


def wrapped(model=None, *, state=None, **options):
    options = {"bucket_cap_mb": 0.1, **options}
    ddp = DistributedDataParallel(network() if model is None else model, **options)
    state = State() if state is None else state
    ddp.register_comm_hook(state, signs)
    return ddp, state


def loss_of(model, width=33):
    return model(torch.randn(5, width)).square().mean()


def descend(model, **options):
    return mpisign.optimizer(model.parameters(), 1e-3, **options)


VIEWS = pytest.mark.parametrize("view", [False, True])


# Ranks.


def test_ranks():
    misuse.check_ranks([0, 1, 2], (0, 1, 2))
    with pytest.raises(ValueError, match=r"among 1 rank, but DDP averages over 3; started by torchrun.*VoteState\(\)"):
        misuse.check_ranks([0], [0, 1, 2])
    with pytest.raises(ValueError, match=r"among 2 ranks, but DDP averages over 3 mpisign"):
        misuse.check_ranks([0, 1], [0, 1, 2])
    with pytest.raises(ValueError, match=r"in the order 1, 0, but DDP has 0, 1: "):
        misuse.check_ranks([1, 0], [0, 1])
    with pytest.raises(ValueError, match=r"among ranks 0, 1, but DDP has 2, 3: "):
        misuse.check_ranks([0, 1], [2, 3])


class Subclass(DistributedDataParallel):
    pass


@pytest.mark.parametrize("kind", [DistributedDataParallel, Subclass])
def test_the_ranks_of_the_model_that_has_the_state(kind):
    state = State(members=(0, 1))
    other, _ = wrapped()
    loss_of(other).backward()
    model = kind(network())
    model.register_comm_hook(state, signs)
    with pytest.raises(ValueError, match="among 2 ranks, but DDP averages over 1"):
        loss_of(model).backward()


def test_unknown_ranks_are_not_compared():
    model, state = wrapped(state=State(members=None))
    loss_of(model).backward()
    assert state.backwards == 1


# Optimizers.

REFUSED = {
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-3),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
    "fused AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    "someone's": lambda p: Sober(p, {"lr": 1e-3, "betas": (0.9, 0.99)}),
    "someone's, of torch's": lambda p: Wrapped(p, lr=1e-3),
    "one group's": lambda p: torch.optim.SGD(
        [{"params": list(p)[:2]}, {"params": list(p)[2:], "momentum": 0.5}], lr=1e-3
    ),
    "ZeRO": lambda p: ZeroRedundancyOptimizer(p, optimizer_class=torch.optim.AdamW, lr=1e-3),
    "ZeRO, momentum": lambda p: ZeroRedundancyOptimizer(p, optimizer_class=torch.optim.SGD, lr=1e-3, momentum=0.9),
}


class Sober(torch.optim.Optimizer):
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.sub_(p.grad, alpha=group["lr"])


class Wrapped(torch.optim.Adam):
    pass


class OwnSGD(torch.optim.SGD):
    pass


@pytest.mark.parametrize("kind", REFUSED)
def test_an_optimizer_for_gradients(kind):
    model, _ = wrapped()
    optimizer = REFUSED[kind](list(model.parameters()))
    loss_of(model).backward()
    before = copy.deepcopy(model.module.state_dict())
    with pytest.raises(
        ValueError, match=r"use mpisign.optimizer\(parameters, lr=...\), or torch.optim.SGD\(.*momentum=0"
    ):
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())


ACCEPTED = {
    "ours": lambda p: mpisign.optimizer(p, 1e-3, weight_decay=0.1),
    "ours, groups": lambda p: mpisign.optimizer(
        [{"params": list(p)[:2], "weight_decay": 0.0}, {"params": list(p)[2:]}], 1e-3
    ),
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-3, weight_decay=0.1),
    "foreach": lambda p: torch.optim.SGD(p, lr=1e-3, foreach=True),
    "fused": lambda p: torch.optim.SGD(p, lr=1e-3, fused=True),
    "subclass": lambda p: OwnSGD(p, lr=1e-3),
    "someone's": lambda p: Sober(p, {"lr": 1e-3}),
    "ZeRO": lambda p: ZeroRedundancyOptimizer(p, optimizer_class=torch.optim.SGD, lr=1e-3),
}


@VIEWS
@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("kind", ACCEPTED)
def test_an_optimizer_for_votes(kind, to_none, view):
    before_the_hook = network()
    optimizer = ACCEPTED[kind](list(before_the_hook.parameters()))
    model, state = wrapped(before_the_hook, gradient_as_bucket_view=view)
    for _ in range(5):
        loss_of(model).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=to_none)
    assert state.backwards == 5


def test_an_optimizer_of_other_parameters():
    model, _ = wrapped()
    other = network()
    loss_of(model).backward()
    loss_of(other).backward()
    torch.optim.AdamW(other.parameters()).step()
    descend(model).step()


def test_adam_for_the_group_that_is_not_voted_on():
    model, _ = wrapped()
    other = nn.Linear(3, 3)
    groups = [{"params": model.parameters()}, {"params": other.parameters(), "momentum": 0.9}]
    loss_of(model).backward()
    loss_of(other, 3).backward()
    torch.optim.SGD(groups, lr=1e-3).step()


def test_our_optimizer():
    x = nn.Parameter(torch.tensor([1.0, 2.0]))
    x.grad = torch.tensor([1.0, -1.0])
    mpisign.optimizer([x], 0.5, weight_decay=0.1).step()
    assert torch.allclose(x, torch.tensor([0.45, 2.4]))
    with pytest.raises(ValueError, match="learning rate"):
        mpisign.optimizer([x], -1.0)


# What becomes of votes between backward and step.


def scale(model, optimizer):
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss_of(model)).backward()
    scaler.step(optimizer)


def scale_and_clip(model, optimizer):
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss_of(model)).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    scaler.step(optimizer)


def clip(model, optimizer):
    loss_of(model).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def multiply(model, optimizer):
    loss_of(model).backward()
    for p in model.parameters():
        p.grad.mul_(3)
    optimizer.step()


def add(what):
    def spoil(model, optimizer):
        loss_of(model).backward()
        for p in model.parameters():
            p.grad.add_(what(p))
        optimizer.step()

    return spoil


SPOILED = {
    "scaler": (scale, r"divided by 65536, as by a GradScaler: use no GradScaler \(bfloat16 autocast"),
    "unscaled": (scale_and_clip, "divided by 65536"),
    "clipped": (clip, r"multiplied by .*clip_grad_norm_: do not clip"),
    "by hand": (multiply, "multiplied by 3"),
    "noise": (add(torch.randn_like), r"added to the votes.*zero_grad\(\).*no_sync\(\)"),
    "decay": (add(lambda p: 0.1 * p.detach()), "added to the votes.*leave weight decay to the optimizer"),
    "not finite": (add(lambda p: torch.full_like(p, torch.nan)), "added to the votes"),
}


@VIEWS
@pytest.mark.parametrize("kind", SPOILED)
def test_spoiled_votes(kind, view):
    spoil, message = SPOILED[kind]
    model, _ = wrapped(gradient_as_bucket_view=view)
    optimizer = descend(model)
    for _ in range(3):
        loss_of(model).backward()
        optimizer.step()
        optimizer.zero_grad()
    with pytest.raises(ValueError, match=message):
        spoil(model, optimizer)


def test_a_scaler_of_a_fused_optimizer():
    model, _ = wrapped()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, fused=True)
    with pytest.raises(ValueError, match="use no GradScaler"):
        scale(model, optimizer)


def test_every_parameter_has_its_turn():
    model, _ = wrapped()
    optimizer = descend(model)
    (hidden,) = [p for p in model.parameters() if p.shape == (101,)]

    def train():
        for _ in model.parameters():
            loss_of(model).backward()
            hidden.grad.add_(0.5 * torch.randn(101))
            optimizer.step()
            optimizer.zero_grad()

    with pytest.raises(ValueError, match="added"):
        train()


def test_memory_formats():
    convolutions = nn.Sequential(nn.Conv2d(3, 70, 3), nn.Conv2d(70, 4, 3)).to(memory_format=torch.channels_last)
    model, _ = wrapped(convolutions)
    optimizer = descend(model)
    for step in range(12):
        model(torch.randn(2, 3, 8, 8)).square().mean().backward()
        assert not model.module[0].weight.grad.is_contiguous()
        if step == 11:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            break
        optimizer.step()
        optimizer.zero_grad()
    with pytest.raises(ValueError, match="multiplied"):
        optimizer.step()


@pytest.mark.parametrize("shape", [(0,), (1,), (63,), (64,), (65,), (1000,), (7, 0), (), (3, 5, 2, 2)])
def test_samples(shape):
    gradient = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)
    seen = set()
    for turn in range(40):
        values = misuse.sample(gradient, turn)
        assert min(32, gradient.numel()) <= len(values) <= 64
        seen.update(values)
    assert seen == set(gradient.flatten().tolist())


# A second backward.


@VIEWS
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_a_gradient_added_to_votes(steps, view):
    model, _ = wrapped(gradient_as_bucket_view=view)
    optimizer = descend(model)
    for _ in range(steps):
        loss_of(model).backward()
        optimizer.step()
        optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()
    with pytest.raises(ValueError, match=r"call zero_grad\(\) before, or, to accumulate.*no_sync\(\)"):
        loss_of(model).backward()


@VIEWS
@pytest.mark.parametrize("end", ["voted on", "used"])
def test_gradients_accumulated_on_top_of_votes(end, view):
    model, _ = wrapped(gradient_as_bucket_view=view)
    optimizer = descend(model)
    loss_of(model).backward()
    if end == "voted on":
        optimizer.step()
    with model.no_sync():
        for _ in range(2):
            loss_of(model).backward()
    with pytest.raises(ValueError, match=r"zero_grad\(\).*no_sync\(\)"):
        loss_of(model).backward() if end == "voted on" else optimizer.step()


@VIEWS
def test_a_graph_used_twice(view):
    """DDP takes no second backward of a forward for its own: a local gradient is added to the votes."""
    model, _ = wrapped(gradient_as_bucket_view=view)
    optimizer = descend(model)
    loss = loss_of(model)
    loss.backward(retain_graph=True)
    loss.backward()
    with pytest.raises(ValueError, match="added to the votes"):
        optimizer.step()


@VIEWS
@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("before", [True, False])
def test_accumulation_as_it_should_be(before, to_none, view):
    model, state = wrapped(gradient_as_bucket_view=view)
    optimizer = descend(model)
    for _ in range(4):
        if before:
            optimizer.zero_grad(set_to_none=to_none)
        with model.no_sync():
            for _ in range(3):
                loss_of(model).backward()
        loss_of(model).backward()
        optimizer.step()
        if not before:
            model.zero_grad(set_to_none=to_none)
    assert state.backwards == 4


class Twice(nn.Module):
    """A parameter used twice, and a part that is computed again in backward."""

    def __init__(self, reentrant):
        super().__init__()
        self.body, self.head, self.reentrant = nn.Linear(33, 33), nn.Linear(33, 3), reentrant

    def forward(self, x):
        x = self.body(self.body(x))
        return self.head(checkpoint(self.body, x, use_reentrant=self.reentrant))


@VIEWS
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_static_graphs_checkpoints_and_parameters_used_twice(static, reentrant, view):
    if reentrant and not static:
        pytest.skip("refused by DDP")
    model, state = wrapped(Twice(reentrant), static_graph=static, gradient_as_bucket_view=view)
    optimizer = descend(model)
    for _ in range(5):
        loss_of(model).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert state.backwards == 5
    loss_of(model).backward()
    with pytest.raises(ValueError, match="zero_grad"):
        loss_of(model).backward()


def test_gradients_that_are_not_accumulated():
    model, _ = wrapped()
    optimizer = descend(model)
    for _ in range(3):
        loss_of(model).backward()
        optimizer.step()
        torch.autograd.grad(loss_of(model.module), list(model.parameters()))
        optimizer.zero_grad()


def test_a_penalty_on_gradients():
    model, state = wrapped()
    optimizer = descend(model)
    for _ in range(3):
        x = torch.randn(5, 33, requires_grad=True)
        y = model(x).square().mean()
        (slope,) = torch.autograd.grad(y, x, create_graph=True)
        (y + slope.square().sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert state.backwards == 3


# A backward that is discarded.


class Gan:
    """G and D in turn; D's gradients are zeroed at the start of its step, as most scripts do, or at the end."""

    def __init__(self, *, late=True, **options):
        self.g, self.sg = wrapped(nn.Linear(8, 33))
        self.d, self.sd = wrapped(nn.Linear(33, 1), state=State(**options))
        self.og, self.od, self.late = descend(self.g), descend(self.d), late

    def step_d(self):
        if self.late:
            self.od.zero_grad()
        fake = self.g.module(torch.randn(5, 8)).detach()
        self.d(torch.cat([fake, torch.randn(5, 33)])).square().mean().backward()
        self.od.step()
        if not self.late:
            self.od.zero_grad()

    def step_g(self, through=contextlib.nullcontext):
        self.og.zero_grad()
        with through():
            loss = self.d(self.g(torch.randn(5, 8))).square().mean()
            loss.backward()
        self.og.step()
        if not self.late:
            self.od.zero_grad()

    @contextlib.contextmanager
    def frozen(self):
        self.d.requires_grad_(False)
        yield
        self.d.requires_grad_(True)


LATE = pytest.mark.parametrize("late", [True, False])


@LATE
@pytest.mark.parametrize("order", ["gd", "dg"])
def test_the_pass_through_a_discriminator(order, late):
    gan = Gan(late=late)

    def train():
        for part in 3 * order:
            gan.step_g() if part == "g" else gan.step_d()

    with pytest.raises(ValueError, match=r"a GAN's, for its generator.*requires_grad_\(False\) or model.no_sync\(\)|"
                       r"requires_grad_\(False\) or model.no_sync\(\) around.*a GAN's.*revocable=True"):  # fmt: skip
        train()


@LATE
@pytest.mark.parametrize("through", ["no_sync", "frozen"])
def test_the_cures_of_a_gan(through, late):
    gan = Gan(late=late)
    for _ in range(3):
        gan.step_d()
        gan.step_g(gan.d.no_sync if through == "no_sync" else gan.frozen)
    assert gan.sd.backwards == gan.sg.backwards == 3


@LATE
def test_a_gan_that_is_taken_back(late):
    gan = Gan(revocable=True, late=late)

    def train(rounds):
        for _ in range(rounds):
            gan.step_d()
            gan.step_g()
        gan.step_d()

    with pytest.warns(UserWarning, match="mpisign: .* taken back"):
        train(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(1)
    assert gan.sd.rolled_back == 3
    assert gan.sg.rolled_back == 0


def test_what_is_known_of_a_bucket_is_not_taken_for_another_at_its_address():
    """DDP makes its buckets anew, and where one model's lay another's may come to lie."""
    memory, state, models = torch.zeros(12), State(), [nn.Linear(3, 3), nn.Linear(3, 3)]
    for model in models:
        bucket = HeldBucket(0, memory.view(12), list(model.parameters()), True)
        state.guard.begin(bucket)
        state.guard.voted(bucket)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        with pytest.raises(ValueError, match="AdamW"):
            torch.optim.AdamW(model.parameters()).step()


def test_a_bucket_of_ddps_is_known_from_step_to_step():
    model, state = wrapped()
    optimizer = descend(model)
    known = []
    for _ in range(5):
        loss_of(model).backward()
        optimizer.step()
        optimizer.zero_grad()
        known.append(set(map(id, state.guard._buckets.values())))
    assert known[1] == known[2] == known[3] == known[4] != set()


def test_a_rank_without_gradients_needs_no_step():
    """It has joined (`ddp.join()`): it votes along, abstains, and takes no step."""
    model, state = wrapped()
    optimizer = descend(model)
    loss_of(model).backward()
    optimizer.step()
    for _ in range(3):
        model.zero_grad()
        (0 * loss_of(model)).backward()
    assert state.backwards == 4
    model.zero_grad()
    loss_of(model).backward()
    model.zero_grad()
    with pytest.raises(ValueError, match="not used by any optimizer step"):
        loss_of(model).backward()


def test_parameters_that_ddp_averages_by_itself():
    module = network()
    delayed = [("0.weight", module[0].weight)]
    model, _ = wrapped(module, delay_all_reduce_named_params=delayed, param_to_hook_all_reduce=module[4].weight)
    with pytest.raises(ValueError, match="delay_all_reduce_named_params"):
        loss_of(model).backward()


def test_a_revocable_state_uses_no_vote_on_a_sum():
    model, _ = wrapped(state=State(revocable=True))
    optimizer = descend(model)
    loss_of(model).backward()
    optimizer.step()
    loss_of(model).backward()
    with pytest.raises(ValueError, match="added to votes"):
        optimizer.step()


def test_a_skipped_step():
    model, state = wrapped()
    optimizer = descend(model)
    for step in range(5):
        optimizer.zero_grad()
        loss_of(model).backward()
        if step == 2:
            state.rollback()
            continue
        optimizer.step()
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.zero_grad()
    with pytest.raises(ValueError, match="rollback"):
        loss_of(model).backward()


@pytest.mark.parametrize("steps", [0, 2])
def test_updates_by_hand(steps):
    """Without an optimizer, or after some steps of one: what is not seen is not refused."""
    model, state = wrapped()
    optimizer = descend(model)
    for step in range(6):
        loss_of(model).backward()
        if step < steps:
            optimizer.step()
        else:
            with torch.no_grad():
                for p in model.parameters():
                    p.sub_(p.grad, alpha=1e-3)
        model.zero_grad()
    assert state.backwards == 6


def test_several_optimizers_of_a_model():
    model, state = wrapped()
    parameters = list(model.parameters())
    halves = [mpisign.optimizer(parameters[:3], 1e-3), mpisign.optimizer(parameters[3:], 1e-3)]
    for step in range(6):
        loss_of(model).backward()
        for half in halves if step < 3 else halves[step % 2 :][:1]:
            half.step()
        model.zero_grad()
    loss_of(model).backward()
    nn.utils.clip_grad_norm_(parameters[3:], 1.0)
    halves[0].step()
    with pytest.raises(ValueError, match="multiplied"):
        halves[1].step()
    assert state.backwards == 7


def test_one_state_of_two_models():
    state = State()
    models = [wrapped(state=state)[0] for _ in range(2)]
    optimizers = [descend(model) for model in models]
    for _ in range(3):
        for model in models:
            loss_of(model).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert state.backwards == 6


# What is no fault.


def test_a_closure():
    model, state = wrapped()
    optimizer = descend(model)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    for _ in range(4):
        optimizer.step(closure)
    assert state.backwards == 4

    def clipped():
        loss = closure()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        return loss

    with pytest.raises(ValueError, match="multiplied"):
        optimizer.step(closure=clipped)


def test_a_closure_behind_accumulation():
    """What lies in .grad before the closure is no vote, and is none of the guard's business."""
    model, state = wrapped()
    optimizer = descend(model)

    def closure():
        loss = loss_of(model)
        loss.backward()
        return loss

    for _ in range(4):
        optimizer.zero_grad()
        with model.no_sync():
            loss_of(model).backward()
        optimizer.step(closure)
    assert state.backwards == 4


def test_autocast_without_a_scaler():
    model, _ = wrapped()
    optimizer = descend(model)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()


def test_a_model_in_bfloat16():
    model, _ = wrapped(network().to(torch.bfloat16))
    optimizer = descend(model)
    for _ in range(3):
        model(torch.randn(5, 33, dtype=torch.bfloat16)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_clipping_that_does_nothing():
    model, _ = wrapped()
    optimizer = descend(model)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    average = torch.optim.swa_utils.AveragedModel(model.module)
    for _ in range(3):
        loss_of(model).backward()
        nn.utils.clip_grad_value_(model.parameters(), 1.0)
        nn.utils.clip_grad_norm_(model.parameters(), 1e9)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        average.update_parameters(model.module)


def test_parameters_without_a_gradient():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = nn.ModuleList([nn.Linear(33, 3), nn.Linear(33, 3)])

        def forward(self, x, which):
            return self.heads[which](x)

    model, state = wrapped(Heads(), find_unused_parameters=True)
    optimizers = [descend(head) for head in model.module.heads]
    for step in range(6):
        model(torch.randn(5, 33), step % 2).square().mean().backward()
        optimizers[step % 2].step()
        model.zero_grad()
    assert state.backwards == 6


@pytest.mark.parametrize("kind", ["whole", "momentum"])
def test_compiled_steps(kind):
    model, state = wrapped()
    optimizer = descend(model) if kind == "whole" else REFUSED["momentum"](model.parameters())
    step = torch.compile(optimizer.step, backend="eager")
    for _ in range(3):
        loss_of(model).backward()
        with contextlib.nullcontext() if kind == "whole" else pytest.raises(ValueError, match=r"mpisign.optimizer"):
            step()
        optimizer.zero_grad()
        if kind == "momentum":
            return
    assert state.backwards == 3
    loss_of(model).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    with pytest.raises(ValueError, match="multiplied"):
        step()


# Hooks.


def test_a_closed_guard_sees_nothing():
    model, state = wrapped()
    loss_of(model).backward()
    state.guard.close()
    state.guard.close()
    assert not torch_optimizer._global_optimizer_pre_hooks
    with model.no_sync():
        loss_of(model).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    torch.optim.AdamW(model.parameters()).step()


def test_a_collected_state_leaves_nothing():
    module = network()
    state = State()
    model = wrapped(module, state=state)[0]
    loss_of(model).backward()
    handles, gone = state.guard._handles, weakref.ref(state.guard)
    assert handles
    del model, state
    gc.collect()
    assert gone() is None
    assert not handles
    loss_of(module).backward()
    torch.optim.AdamW(module.parameters()).step()
    State().guard.close()  # takes away the hook that all guards share


def test_a_guard_keeps_neither_state_nor_model():
    model, state = wrapped()
    loss_of(model).backward()
    guard, gone = state.guard, [weakref.ref(thing) for thing in (state, model, model.module[0].weight)]
    del model, state
    gc.collect()
    assert [thing() for thing in gone] == [None] * 3
    guard.close()
