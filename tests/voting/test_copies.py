"""Collective: run under mpirun. What becomes of a state that is copied, closed or forgotten."""

import copy
import gc
import io
import pickle

import pytest
import torch
from mpi4py import MPI
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import mpisign
from mpisign.ranks.group import process_group

pytestmark = pytest.mark.mpi
RANKS = (1, 3)

COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda state: pickle.loads(pickle.dumps(state))}  # noqa: S301 (its own)
A_COPY = r"a copy \(deepcopy, pickle\) has neither ranks nor momentum: make a new VoteState"


@pytest.fixture(scope="module", autouse=True)
def torch_distributed(comm):
    torch.set_num_threads(1)
    with process_group(comm, "gloo", one_node=True):
        yield


def voting(state):
    replica = DistributedDataParallel(nn.Linear(5, 3))
    replica.register_comm_hook(state, mpisign.vote_hook)
    return replica


def learn(replica, steps=2):
    optimizer = mpisign.optimizer(replica.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        replica(torch.ones(2, 5)).sum().backward()
        optimizer.step()


@pytest.fixture
def state(comm):
    with mpisign.VoteState(comm, rule=mpisign.Signum(0.5), tie="random", seed=3) as made:
        yield made


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_keeps_the_settings_and_says_what_to_do(state, how):
    replica = voting(state)
    learn(replica)
    copied = COPIES[how](COPIES[how](state))
    assert (copied.rule, copied.tie, copied.seed, copied.steps) == (mpisign.Signum(0.5), "random", 3, 2)
    assert "closed" in repr(copied)
    uses = [copied.statistics, copied.rollback, lambda: copied.state_dict([]), lambda: copied.share_momentum(state),
            lambda: copied.load_state_dict(state.state_dict([]), []),
            lambda: copied.momentum_of(None), lambda: learn(voting(copied))]  # fmt: skip
    for use in uses:
        with pytest.raises(ValueError, match=A_COPY):
            use()
    copied.close()
    copied.close()
    learn(replica)  # the first one goes on
    assert state.steps == 4


@pytest.mark.parametrize("how", ["deepcopy", "save"])
def test_a_model_is_copied_with_its_state(state, how):
    replica = voting(state)
    learn(replica)
    if how == "save":
        file = io.BytesIO()
        torch.save(replica, file)
        file.seek(0)
        again = torch.load(file, weights_only=False)
    else:
        again = copy.deepcopy(replica)
    assert all(map(torch.equal, again.parameters(), replica.parameters()))
    again.register_comm_hook(state, mpisign.vote_hook)  # a copy of DDP has no hook
    learn(again)
    assert state.steps == 4


def test_a_closed_state_votes_no_more_but_its_momentum_can_be_saved(comm):
    state = mpisign.VoteState(comm)
    replica = voting(state)
    learn(replica)
    state.close()
    state.close()
    assert state.statistics().step == 1
    assert len(state.state_dict(replica.parameters())["momentum"]) == 2
    with pytest.raises(ValueError, match="VoteState: it is closed: make a new VoteState"):
        learn(replica)


def test_a_collected_state_frees_its_communicator(comm):
    state = mpisign.VoteState(comm)
    replica = voting(state)
    learn(replica)
    inner = state._comm._comm
    assert inner != MPI.COMM_NULL
    del state, replica
    gc.collect()
    assert inner == MPI.COMM_NULL
