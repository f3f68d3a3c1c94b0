"""Kinds of models and numbers: dtypes, embeddings, shared and frozen parameters."""

import torch
from torch import nn
from torch.nn.functional import mse_loss
from way import INPUTS, RATE, STEPS, Table, Way, batch, learn, network, steps, unseen_loss

KINDS = Table()


@KINDS.works("parameters in bfloat16")
def bfloat16(way: Way) -> float:
    return learn(way, way.parallel(network().to(torch.bfloat16)))


@KINDS.works("parameters in float16")
def float16(way: Way) -> float:
    replica = way.parallel(network().to(torch.float16))
    optimizer = way.optimizer(replica.parameters())
    if not way.voting:
        optimizer.param_groups[0]["eps"] = 1e-3  # Adam's own would be 0 in float16
    return learn(way, replica, optimizer)


@KINDS.works("parameters in float64")
def float64(way: Way) -> float:
    return learn(way, way.parallel(network().to(torch.float64)))


@KINDS.works("parameters in float32 and bfloat16 in one model", "DDP gives each type buckets of its own")
def mixed_types(way: Way) -> float:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.rest = nn.Linear(INPUTS, INPUTS).to(torch.bfloat16), network()

        def forward(self, inputs):
            return self.rest(self.first(inputs.to(torch.bfloat16)).to(torch.float32))

    torch.manual_seed(3)
    return learn(way, way.parallel(Mixed()), dtype=torch.float32)


@KINDS.works("`torch.set_default_dtype(torch.float64)`")
def default_float64(way: Way) -> float:
    torch.set_default_dtype(torch.float64)
    return learn(way, way.parallel(network()))


@KINDS.works("`torch.set_default_dtype(torch.bfloat16)`, parameters in float32")
def default_bfloat16(way: Way) -> float:
    model = network()
    torch.set_default_dtype(torch.bfloat16)
    return learn(way, way.parallel(model))


@KINDS.refused("complex parameters", "a complex number has no sign: keep real and imaginary part (`view_as_real`)",
               says="complex")  # fmt: skip
def complex_parameters(way: Way) -> float:
    class Rotation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(7)
            self.weight = nn.Parameter(torch.randn(INPUTS, 1, dtype=torch.complex64))

        def forward(self, inputs):
            return (inputs.to(torch.complex64) @ self.weight).real

    return learn(way, way.parallel(Rotation()), dtype=torch.float32)


TOKENS, USED = 40, 20
DRIFT = 2 * RATE * STEPS / 2  # of a row that gets +1 in each step


def tokens(rank: int, step: int, count: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens below USED, and what each stands for."""
    drawn = torch.randint(1, USED, (count,), generator=torch.Generator().manual_seed(1000 * step + rank))
    return drawn, torch.cos(drawn * 2.0)[:, None] * 2**0.5


def learn_tokens(way: Way, embedding: nn.Embedding, **vote: str) -> tuple[float, torch.Tensor]:
    torch.manual_seed(7)
    embedding.reset_parameters()
    model = nn.Sequential(embedding, nn.Linear(8, 1))
    before = embedding.weight.detach().clone()
    replica = way.parallel(model, vote=vote)
    optimizer = way.optimizer(model.parameters(), 2 * RATE)
    for step in steps(optimizer):
        drawn, meant = tokens(way.rank, step)
        optimizer.zero_grad()
        mse_loss(replica(drawn), meant).backward()
        optimizer.step()
    drawn, meant = tokens(99, 99, 256)
    with torch.no_grad():
        return float(mse_loss(model(drawn), meant)), (embedding.weight.detach() - before)[USED:]


@KINDS.works('an embedding with rows that are never used, `zeros="abstain"`', "they stay where they are")
def unused_rows(way: Way) -> float:
    loss, moved = learn_tokens(way, nn.Embedding(TOKENS, 8), zeros="abstain")
    assert not way.voting or not moved.any(), "unused rows have moved"
    return loss


@KINDS.works(
    'an embedding with rows that are never used, `zeros="random"`',
    'they wander; with an even number of ranks take `tie="random"` too, else they drift',
)
def unused_rows_random(way: Way) -> float:
    loss, moved = learn_tokens(way, nn.Embedding(TOKENS, 8), zeros="random")
    assert not way.voting or 0 < moved.mean().abs() < 0.1 * DRIFT, f"unused rows have moved by {moved.mean()}"
    return loss


@KINDS.works('an embedding with rows that are never used, `zeros="positive"`', "they drift by the rate in each step")
def unused_rows_positive(way: Way) -> float:
    loss, moved = learn_tokens(way, nn.Embedding(TOKENS, 8), zeros="positive")
    assert not way.voting or (moved < -0.9 * DRIFT).all(), f"unused rows have moved by {moved.mean()}"
    return loss


@KINDS.works(
    '`padding_idx`, `zeros="abstain"`',
    'the row of the padding stays 0; with the default, `zeros="random"`, it does not',
)
def padding(way: Way) -> float:
    embedding = nn.Embedding(TOKENS, 8, padding_idx=0)
    loss, _ = learn_tokens(way, embedding, zeros="abstain")
    assert not way.voting or not embedding.weight[0].any(), "the padding's row has moved"
    return loss


@KINDS.refused("`nn.Embedding(sparse=True)`", "take `sparse=False`", says="sparse")
def sparse(way: Way) -> float:
    if not way.voting:  # AdamW refuses them too
        way.optimizer = lambda parameters, rate: torch.optim.SGD(parameters, rate)
    return learn_tokens(way, nn.Embedding(TOKENS, 8, sparse=True))[0]


@KINDS.works("frozen parameters")
def frozen(way: Way) -> float:
    model = network()
    model[0].requires_grad_(False)
    return learn(way, way.parallel(model))


@KINDS.works("parameters that are frozen and thawed on the way, `find_unused_parameters=True`")
def frozen_on_the_way(way: Way) -> float:
    model = network()
    replica = way.parallel(model, find_unused_parameters=True)
    optimizer = way.optimizer(model.parameters())
    for step in steps(optimizer):
        model[0].requires_grad_(not 20 <= step < 30)
        inputs, targets = batch(way.rank, step)
        optimizer.zero_grad()
        mse_loss(replica(inputs), targets).backward()
        optimizer.step()
    return unseen_loss(model)


@KINDS.works("thawed parameters: the model is wrapped anew, with the same state's momentum")
def wrapped_anew(way: Way) -> float:
    model = network()
    model[0].requires_grad_(False)
    replica = way.parallel(model)
    learn(way, replica, count=10)
    model[0].requires_grad_(True)
    kept = way.state.state_dict(model.parameters()) if way.voting else None
    del replica
    again = way.parallel(model)
    if way.voting:
        way.state.load_state_dict(kept, model.parameters())
    return learn(way, again)


@KINDS.works("shared parameters (tied weights)")
def tied(way: Way) -> float:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(7)
            self.first, self.last = nn.Linear(INPUTS, INPUTS), nn.Linear(INPUTS, 1)
            self.second = nn.Linear(INPUTS, INPUTS)
            self.second.weight = self.first.weight

        def forward(self, inputs):
            return self.last(torch.tanh(self.second(torch.tanh(self.first(inputs)))))

    return learn(way, way.parallel(Tied()))


@KINDS.works("weight and spectral normalisation (`torch.nn.utils.parametrizations`)")
def parametrized(way: Way) -> float:
    model = network()
    nn.utils.parametrizations.weight_norm(model[0])
    nn.utils.parametrizations.spectral_norm(model[2])
    return learn(way, way.parallel(nn.Sequential(model, Scale())))


class Scale(nn.Module):
    """A parameter without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, inputs):
        return self.scale * inputs


@KINDS.works("parameters with 0 and with 1 elements")
def empty_parameters(way: Way) -> float:
    model = nn.Sequential(network(), Scale())
    model[1].nothing = nn.Parameter(torch.zeros(0, 3))
    return learn(way, way.parallel(model, find_unused_parameters=True))


@KINDS.works("dropout, with random numbers of each rank's own")
def dropout(way: Way) -> float:
    model = network()
    model.insert(2, nn.Dropout(0.05))
    learn(way, way.parallel(model))
    model.eval()
    return unseen_loss(model)


@KINDS.works("an LSTM")
def lstm(way: Way) -> float:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(7)
            self.lstm, self.out = nn.LSTM(2, 16, batch_first=True), nn.Linear(16, 1)

        def forward(self, inputs):
            return self.out(self.lstm(inputs.view(len(inputs), 4, 2))[0][:, -1])

    replica = way.parallel(Reader())
    return learn(way, replica, way.optimizer(replica.parameters(), 0.08))


@KINDS.works("outputs in a dictionary or a dataclass")
def outputs_in_a_dictionary(way: Way) -> float:
    class Told(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, inputs, targets):
            predicted = self.net(inputs)
            return {"loss": mse_loss(predicted, targets), "predicted": predicted}

    model = Told()
    replica = way.parallel(model)
    optimizer = way.optimizer(model.parameters())
    for step in steps(optimizer):
        optimizer.zero_grad()
        replica(*batch(way.rank, step))["loss"].backward()
        optimizer.step()
    return unseen_loss(model.net)


@KINDS.works("an attention block, non-contiguous gradients")
def attention(way: Way) -> float:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(7)
            self.inner, self.outer = nn.Linear(2, 16), nn.Linear(64, 1)
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

        def forward(self, inputs):
            hidden = self.inner(inputs.view(len(inputs), 4, 2))
            return self.outer((hidden + self.attention(hidden, hidden, hidden)[0]).flatten(1))

    replica = way.parallel(Block())
    return learn(way, replica, way.optimizer(replica.parameters(), 0.01))
