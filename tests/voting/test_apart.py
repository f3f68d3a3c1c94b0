"""Whom the watch names in a small training: each kind of traitor that does harm, and never an honest rank."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import mpisign
from mpisign.coding import bits, coding
from mpisign.coding.rules import Signum
from mpisign.coding.sizes import words_for
from mpisign.ranks.group import process_group
from mpisign.voting.adversary import ADVERSARIES, Traitor
from mpisign.voting.exchange import plan_over
from mpisign.voting.ledger import Ledger, told
from mpisign.voting.threads import run_threads

# What a traitor of this kind sends is as good as the others' votes, a step late: it does no harm, and is not named.
LIKE_THE_OTHERS = {"delayed"}
N, STEPS, RATE, PRESENT = 5000, 60, 0.01, np.zeros(1, bool)


def named(P, adversary=None, *, guilty=(), seed=0, noise=1.0):
    """Return whom each rank names: P threads learn a vector from gradients with noise of their own."""

    def learn(carrier):
        traitor = Traitor(adversary, seed, rank=carrier.rank) if carrier.rank in guilty else None
        coins, target = np.random.default_rng([seed, carrier.rank]), np.random.default_rng(seed).standard_normal(N)
        plan = plan_over(carrier, words_for(N), exchange="alltoall", tie="positive", seed=seed)
        ledger, weights, momentum = Ledger(P, carrier.rank), np.zeros(N), np.zeros(N, np.float32)
        for step in range(STEPS):
            gradient = (weights - target + noise * coins.standard_normal(N)).astype(np.float32)
            bits.sign(gradient, plan.words, rule=Signum(), momentum=momentum)
            if traitor:
                traitor.lie_in_words(plan.words, N, bucket=0, step=step)
            voted = plan.vote(step)
            ledger.count(*map(coding.tensor_of, (plan.words, voted)), n=N, absent=PRESENT, tie="positive", moved=(0, 0))
            ledger.end_step(step, 0.0)
            ledger.hear(np.array(carrier.allgather(told(ledger.last().agreement))))
            weights -= RATE * bits.unpack(voted, N)
        return ledger.watch.apart, ledger.news

    return run_threads(P, learn)


@pytest.mark.parametrize("P", [3, 4, 7])
@pytest.mark.parametrize("adversary", ADVERSARIES)
def test_a_traitor_is_named_by_all_unless_it_votes_as_the_others(adversary, P):
    for apart, news in named(P, adversary, guilty={P - 1}):
        assert apart == ([] if adversary in LIKE_THE_OTHERS else [P - 1])
        assert len(news) == len(apart)


@pytest.mark.parametrize("adversary", sorted(ADVERSARIES.keys() - LIKE_THE_OTHERS))
def test_two_traitors_of_seven_are_named(adversary):
    assert named(7, adversary, guilty={0, 4})[0][0] == [0, 4]


@pytest.mark.parametrize("noise", [0.5, 1.0, 10.0, 100.0])
def test_honest_ranks_are_never_named(noise):
    for P in (3, 4, 7):
        for seed in range(5):
            assert all(apart == [] and news == [] for apart, news in named(P, seed=seed, noise=noise))


@pytest.fixture(scope="module")
def torch_distributed(comm):
    torch.set_num_threads(1)
    with process_group(comm, "gloo", one_node=True):
        yield


@pytest.mark.mpi
@pytest.mark.filterwarnings("ignore:mpisign. step")
@pytest.mark.parametrize("adversary", [None, *ADVERSARIES])
def test_a_states_statistics_name_it(comm, torch_distributed, adversary):
    if comm.size < 3:
        pytest.skip("of two ranks nobody can say which is odd")
    guilty, coins = comm.size - 1, torch.Generator().manual_seed(comm.rank)
    torch.manual_seed(0)
    model = nn.Linear(400, 10)
    replica, teacher = DistributedDataParallel(model), torch.randn(400, 10)
    state = mpisign.VoteState(comm, adversary=adversary if comm.rank == guilty else None)
    replica.register_comm_hook(state, mpisign.vote_hook)
    optimizer = mpisign.optimizer(model.parameters(), lr=RATE)
    for _ in range(STEPS):
        inputs = torch.randn(64, 400, generator=coins)
        optimizer.zero_grad()
        (replica(inputs) - inputs @ teacher).square().mean().backward()
        optimizer.step()
    apart, shares = state.statistics().apart, state.statistics().agreements
    state.close()
    assert apart == ([] if adversary in {None, *LIKE_THE_OTHERS} else [guilty]), shares
