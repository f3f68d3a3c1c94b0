"""The vote between the nodes of a model that `fully_shard` (FSDP2) has sharded inside each of them.

FSDP averages a gradient over the ranks of a node, densely, and leaves its shard in .grad. The shards of the same index,
one a node, are voted on there: one bit a coordinate between the nodes.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard
from torch.utils.weak import TensorWeakRef

from ..ranks.agreement import agree, first_fault
from .bucket import HeldBucket, local_of
from .carriers import GroupComm
from .where import members_of

if TYPE_CHECKING:
    from .hook import VoteState

_MESH = (
    'mesh = init_device_mesh(device, (nodes, ranks of a node), mesh_dim_names=("replicate", "shard")), then '
    'fully_shard(module, mesh=mesh["shard"]) and mpisign.VoteState(mesh.get_group("replicate"))'
)
_with_votes: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def vote_across(model: nn.Module, state: VoteState) -> None:
    """Vote between the nodes on what FSDP2 averages inside them: `mpisign.vote_across(model, state)`. Collective.

        mesh = init_device_mesh("cuda", (nodes, gpus), mesh_dim_names=("replicate", "shard"))
        for block in [*model.blocks, model]:
            fully_shard(block, mesh=mesh["shard"])
        state = mpisign.VoteState(mesh.get_group("replicate"))
        mpisign.vote_across(model, state)
        optimizer = mpisign.optimizer(model.parameters(), lr=1e-3)

    Each FSDP module is a bucket, the last of `model.modules()` the first. After backward the .grad of each parameter
    that requires a gradient is a new DTensor: the votes on the shard of this rank, -1, 0 or 1, in its type. They are
    taken from the gradient as FSDP would leave it, so its mixed precision, its division of gradients and its offloading
    to the CPU come before the vote. The momentum is that of a shard: `state.state_dict(model.parameters())`.

    A rank whose shard of a gradient is exactly 0, or that has none, abstains. To accumulate, call
    `model.set_requires_gradient_sync(False)` before all backwards but the last. The nodes must start from the same
    parameters, as from one seed or one checkpoint: the first backward compares them.

    On a CUDA device a bucket is gathered on FSDP's stream of its all-reduce, voted on in the state's own, and waited
    for by that on which backward was called. Tried on CPUs alone so far, with torch 2.14.

    Args:
        model: `fully_shard` was applied to it and to what of it is to be a bucket of its own, with the one-dimensional
            mesh of the ranks of a node. A mesh of two dimensions would average between the nodes, too.
        state: Made over the ranks that hold the same shard, one a node.

    Raises:
        ValueError: on all ranks: the model is not sharded, or sharded otherwise; some of its parameters are not; it
            is voted on already; the state is over other ranks. In backward: the copies of the nodes differ, gradients
            are added to votes, or parameters are others than when this was called.

    """
    state._check_open()
    buckets: list[list[nn.Parameter]] = []
    comm = state._comm
    for module in _sharded(model):
        module.reshard()  # an evaluation may have left it unsharded
    agree(comm, None, lambda: buckets.extend(_buckets_of(model)))
    mesh = cast(DTensor, buckets[0][0]).device_mesh
    _check_ranks(comm, mesh.get_group(), [[tuple(local_of(p).shape) for p in bucket] for bucket in buckets])
    votes = _Votes(model, state, buckets)
    for module in _sharded(model):
        module.set_all_reduce_hook(votes.reduced)
        _with_votes.add(module)
    arrived = weakref.WeakMethod(votes.arrived)  # from a parameter's hook the garbage collector would not find back
    for parameter in votes.numbers:
        parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
            lambda one: hook(one) if (hook := arrived()) else None
        )


def _sharded(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _buckets_of(model: nn.Module) -> list[list[nn.Parameter]]:
    """Return what is trained of each FSDP module without those inside it, the last one first.

    Raises:
        ValueError: the model is not sharded, or not as it ought to be.

    """
    modules = _sharded(model)
    if not modules:
        raise ValueError(f"vote_across: nothing of the model is sharded, call fully_shard before: {_MESH}")
    if any(module in _with_votes for module in modules):
        raise ValueError("vote_across: the model is voted on already: call it once")
    trained = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trained:
        raise ValueError("vote_across: no parameter of the model requires a gradient")
    meshes = set()
    for parameter, name in trained.items():
        if not isinstance(parameter, DTensor):
            raise ValueError(f"vote_across: {name} is not sharded, so nothing would exchange its gradient: apply "
                             "fully_shard to the whole model, without ignored_params")  # fmt: skip
        mesh = parameter.device_mesh
        if mesh.ndim != 1 or not isinstance(parameter.placements[0], Shard):
            raise ValueError(
                f"vote_across: {name} is sharded over a mesh of {mesh.ndim} dimensions, {tuple(mesh.shape)}, placed as "
                f"{parameter.placements}: torch itself would average over all of it; shard inside a node alone: {_MESH}"
            )
        if parameter.is_meta:
            raise ValueError(f"vote_across: {name} is on the meta device: call to_empty and set it before")
        meshes.add(tuple(mesh.mesh.tolist()))
    if len(meshes) != 1:
        raise ValueError(f"vote_across: expected one mesh for all parameters that are trained, got {len(meshes)}")
    # Backwards, modules that lie inside a module come before it.
    buckets = [[one for one in module.parameters() if trained.pop(one, None)] for module in reversed(modules)]
    if trained:
        raise ValueError(f"vote_across: {next(iter(trained.values()))} is in no module that fully_shard was applied to")
    return [bucket for bucket in buckets if bucket]


def _check_ranks(comm: Any, node: dist.ProcessGroup, shapes: object) -> None:
    """Check that the ranks of the votes and those of the nodes are the rows and columns of a grid. Collective.

    Raises:
        ValueError: on all ranks of the grid: they are not, or they have other shards.

    """
    inside, shards = GroupComm(node), dist.get_process_group_ranks(node)
    voters = members_of(comm) or []
    nodes: list[list[int]] = comm.allgather(shards)
    across: list[list[int]] = inside.allgather(voters)
    others = comm.allgather(shapes)
    fault = None
    if len(voters) > 1 and set(voters) <= set(shards):
        fault = f"vote_across: ranks {voters} hold different shards of one model: nothing is replicated among them"
    elif nodes != [list(row) for row in zip(*across, strict=False)]:
        fault = f"vote_across: the votes are among ranks {voters}, which do not hold the same shard, one a node"
    elif len(voters) == 1 and dist.get_world_size() > len(shards):
        fault = f"vote_across: rank {voters[0]} votes alone, though the model is sharded over {len(shards)} ranks only"
    elif any(other != shapes for other in others):
        fault = f"vote_across: ranks {voters} do not have the same shards: is it one model, sharded alike?"
    # Through the rows and then the columns a fault comes to all.
    fault = first_fault(inside, fault and f"{fault}: {_MESH}")

    def check() -> None:
        if fault is not None:
            raise ValueError(fault)

    agree(comm, None, check)


class _Votes:
    """Hands a model's gradients to a state as they come, bucket by bucket, in the same order on all ranks."""

    def __init__(self, model: nn.Module, state: VoteState, buckets: Sequence[Sequence[nn.Parameter]]) -> None:
        self._state, self._buckets = state, buckets
        self.numbers = {parameter: number for number, bucket in enumerate(buckets) for parameter in bucket}
        self._frozen = [parameter for parameter in model.parameters() if parameter not in self.numbers]
        self._compared = False
        self._voted: dict[nn.Parameter, tuple[TensorWeakRef, int]] = {}  # .grad and its version, after the last vote
        # Of one backward.
        self._backward = -1  # torch's number of it
        self._next = 0  # the bucket that is to be voted on next
        self._awaited: list[set[nn.Parameter]] = []  # of each bucket
        self._unseen = 0  # coordinates that were reduced, and did not arrive
        self._futures: list[torch.futures.Future[Tensor]] = []
        self._stream: torch.cuda.Stream | None = None  # on which gradients arrive

    @torch.no_grad()
    def reduced(self, shard: Tensor) -> None:
        """Note that FSDP has averaged gradients, flat and padded, over the node; it sets .grad next."""
        self._begin()
        self._unseen += shard.numel()

    @torch.no_grad()
    def arrived(self, parameter: nn.Parameter) -> None:
        """Take a gradient that FSDP has just left in .grad; vote on each bucket whose turn it is and that is whole.

        Raises:
            ValueError: it was added to votes.

        """
        self._begin()
        number, gradient = self.numbers[parameter], cast(Tensor, parameter.grad)
        before, version = self._voted.get(parameter, (None, 0))
        if number < self._next or (before is not None and before() is gradient and gradient._version == version):
            raise ValueError(
                "backward: a gradient was added to votes that an earlier one had left in .grad: call zero_grad() "
                "before, or, to accumulate, model.set_requires_gradient_sync(False) before all backwards but the last; "
                "activation checkpointing needs use_reentrant=False"
            )
        self._unseen -= _padded(cast(DTensor, parameter))
        self._awaited[number].discard(parameter)
        if gradient.is_cuda:
            self._stream = torch.cuda.current_stream(gradient.device)
        while self._next < len(self._buckets) - 1 and not self._awaited[self._next]:
            self._take()

    def _begin(self) -> None:
        """Prepare for a backward, if this one is new.

        Raises:
            ValueError: a parameter was frozen when `vote_across` was called, or the nodes' parameters differ.

        """
        backward = torch._C._current_graph_task_id()
        if backward == self._backward:
            return
        if any(parameter.requires_grad for parameter in self._frozen):
            raise ValueError("vote_across: a parameter requires a gradient that did not when it was called")
        if not self._compared:
            self._compare()
        self._backward, self._next, self._unseen, self._futures = backward, 0, 0, []
        self._awaited = [{parameter for parameter in bucket if parameter.requires_grad} for bucket in self._buckets]
        torch.autograd.Variable._execution_engine.queue_callback(self._end)

    def _compare(self) -> None:
        """Check, once, that the nodes start from the same parameters: a vote would keep their difference."""
        local = (local_of(parameter).contiguous().view(torch.uint8) for parameter in self.numbers)
        sums = [int(octets.sum(dtype=torch.int64)) for octets in local]
        if any(other != sums for other in self._state._comm.allgather(sums)):
            raise ValueError("vote_across: the parameters differ from node to node: start all from one seed or "
                             "checkpoint, for the votes keep a difference for ever")  # fmt: skip
        self._compared = True

    @torch.no_grad()
    def _end(self) -> None:
        """Vote on what is left when backward is done, and wait for all votes."""
        self._backward = -1
        if self._unseen:
            raise ValueError("vote_across: gradients went without a vote, for parameters are others than when it was "
                             "called: call it after to_empty() and load_state_dict(assign=True)")  # fmt: skip
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
        while self._next < len(self._buckets):
            self._take()
        for future in self._futures:
            future.wait()
        self._voted = {p: (TensorWeakRef(p.grad), p.grad._version) for p in self.numbers if p.grad is not None}

    def _take(self) -> None:
        """Hand the next bucket to the state: its gradients, flat and without padding, which .grad shows from now on."""
        number, parameters = self._next, self._buckets[self._next]
        self._next += 1
        shards = [local_of(parameter) for parameter in parameters]
        pieces = []
        for parameter, shard in zip(parameters, shards, strict=True):
            if parameter in self._awaited[number] or parameter.grad is None:
                pieces.append(torch.zeros_like(shard).view(-1))  # none here; others may have one
                continue
            pieces.append(local_of(parameter.grad).reshape(-1))
            if pieces[-1].is_cuda:
                # FSDP made it in another stream, where its memory might be used again too soon.
                pieces[-1].record_stream(torch.cuda.current_stream(pieces[-1].device))
        buffer = torch.cat(pieces)
        split = torch.split(buffer, [len(piece) for piece in pieces])
        for parameter, piece, shard in zip(parameters, split, shards, strict=True):
            if parameter.requires_grad:
                parameter.grad = _like(cast(DTensor, parameter), piece.view(shard.shape))
        self._futures.append(torch.futures.Future(devices=[buffer.device] if buffer.is_cuda else None))
        last = number == len(self._buckets) - 1
        self._state.take(HeldBucket(number, buffer, shards, last, owners=parameters), self._futures[-1])


def _like(parameter: DTensor, shard: Tensor) -> DTensor:
    """Return a shard as a DTensor placed as a parameter is."""
    return DTensor.from_local(
        shard, parameter.device_mesh, parameter.placements, run_check=False, shape=parameter.shape,
        stride=parameter.stride(),
    )  # fmt: skip


def _padded(parameter: DTensor) -> int:
    """Return how many coordinates FSDP's flat gradient has for a parameter: those of the greatest shard."""
    dim, ranks = cast(Shard, parameter.placements[0]).dim, parameter.device_mesh.size()
    sizes = [math.ceil(size / ranks) if d == dim else size for d, size in enumerate(parameter.shape)]
    return math.prod(sizes)
