"""Watches what a training script does with its votes, and refuses what would ruin the training in silence.

It looks in three places: at the first bucket of a backward (who votes, and what became of the votes before), before a
gradient is added to .grad (does it hold votes?), and before an optimizer's step (is it made for votes, and are they
votes still?). A script that updates its parameters by hand, without an optimizer, is not looked at in the last place.
"""

from __future__ import annotations

import functools
import gc
import warnings
import weakref
from collections.abc import Callable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.weak import WeakTensorKeyDictionary

from . import misuse
from .bucket import local_of, owners_of

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.utils.hooks import RemovableHandle

    from .bucket import Bucket

Reference: TypeAlias = Callable[[], Any]  # what weakref.ref gives
Arguments: TypeAlias = tuple[Any, ...]


class _Part:
    """Parameters that are voted on in the same backward, those of a model, and what became of their last votes."""

    def __init__(self) -> None:
        self.expected = False  # that an optimizer uses them: one has used earlier ones
        self.used_by: set[int] = set()  # ids of optimizers
        self.forgiven = False  # they were taken back
        self.took_in = False  # this rank had a gradient of any parameter: a joined one has none, and takes no step
        self.of_a_sum = False  # the gradient that was voted on had been added to earlier votes
        self.versions: list[tuple[Reference, int]] = []  # of some parameters, when they were voted on

    def begin(self, watched: Sequence[Reference], *, of_a_sum: bool) -> None:
        """Forget the last votes: there are new ones."""
        self.expected = self.expected or bool(self.used_by)
        self.used_by.clear()
        self.forgiven, self.took_in, self.of_a_sum = False, False, of_a_sum
        self.versions = [(reference, reference()._version) for reference in watched]

    def discarded(self) -> bool:
        """Return whether an optimizer should have used them, and nothing did."""
        if self.used_by or self.forgiven or not (self.expected and self.took_in):
            return False
        # A compiled step, or one by hand, is not seen, but the parameters have changed.
        now = ((reference(), version) for reference, version in self.versions)
        return all(there is None or there._version == version for there, version in now)


class _Bucket(NamedTuple):
    """What is kept of a bucket, so that DDP need not be asked for its parameters in every step."""

    part: _Part
    first: Reference
    last: Reference


class _Holding(NamedTuple):
    """What is kept of an optimizer: which of its parameters are voted on."""

    sizes: tuple[int, ...]  # of all its groups, then
    groups: list[int]  # those with such parameters
    parts: list[_Part]
    parameters: list[tuple[Reference, _Part]]


class Guard:
    """Refuses misuse of the votes of one state.

    Args:
        state: The state that DDP has as its hook's; only a weak reference to it is kept. `revocable` says whether
            a step whose votes nobody used is taken back by `rollback()` (with a warning, once) or refused.
        members: The global ranks that vote, in the order of the communicator; None: not known, not compared.

    """

    def __init__(self, state: Any, members: Sequence[int] | None) -> None:
        self._state, self._members = weakref.ref(state), members
        self._models_known = self._warned = False
        self._turn = 0  # backwards that were voted on
        self._now = _Part()
        self._parts: dict[int, tuple[Reference, _Part]] = {}  # by the id of a parameter
        self._buckets: MutableMapping[Tensor, _Bucket] = WeakTensorKeyDictionary()
        self._holdings: weakref.WeakKeyDictionary[Optimizer, _Holding] = weakref.WeakKeyDictionary()
        # Ids of parameters: those before whose accumulation we look, those whose .grad may still hold votes, and those
        # to whose votes a gradient has been added.
        self._watched: set[int] = set()
        self._unzeroed: set[int] = set()
        self._sums: set[int] = set()
        self._handles: list[RemovableHandle] = []
        self._remove = weakref.finalize(self, _remove, self._handles)
        self._remove.atexit = False
        _watch_steps(self)

    def close(self) -> None:
        """Take away every hook. Twice is harmless."""
        self._remove()
        _forget_steps(self)

    def forget(self) -> None:
        """Expect nobody to use the last votes: the state's `rollback` has taken them back."""
        self._now.forgiven = True

    def take_in(self) -> None:
        """Note that this rank takes part in a vote: its momentum takes in a gradient of this backward."""
        self._now.took_in = True

    def begin(self, bucket: Bucket) -> None:
        """Look at the first bucket of a backward, before its vote.

        Raises:
            ValueError: DDP averages over other ranks, a gradient was added to votes, or the votes of the backward
                before were not used.

        """
        if not self._models_known:
            self._check_models()
        known = self._known(bucket, _Part())
        watched = [known.first, known.last]
        of_a_sum = any(id(reference()) in self._sums for reference in watched)
        if of_a_sum and not self._revocable():
            raise ValueError(misuse.SECOND_BACKWARD)
        if known.part.discarded():
            self._take_back()
        self._now, self._turn = known.part, self._turn + 1
        known.part.begin(watched, of_a_sum=of_a_sum)
        for reference in watched:
            self._watch(reference)

    def voted(self, bucket: Bucket) -> None:
        """Note a bucket that is voted on, before its future is fulfilled: after that a step may use it."""
        self._known(bucket, self._now)

    def _known(self, bucket: Bucket, part: _Part) -> _Bucket:
        """Return what is known of a bucket; a new one's parameters are of this part, if of none yet."""
        # DDP has a buffer a bucket until it divides them anew; of shards the buffer is another in each backward.
        owners = getattr(bucket, "owners", None)
        kept = owners[0] if owners else bucket.buffer()
        known = self._buckets.get(kept)
        if known is not None:
            return known
        parameters = owners_of(bucket)
        part = next((found[1] for p in parameters if (found := self._found(p))), part)
        for parameter in parameters:
            if self._found(parameter) is None:
                self._watched.discard(id(parameter))  # another's, that had this id
            self._parts[id(parameter)] = (weakref.ref(parameter), part)
        self._buckets[kept] = known = _Bucket(part, weakref.ref(parameters[0]), weakref.ref(parameters[-1]))
        self._holdings.clear()
        return known

    def _found(self, parameter: Tensor) -> tuple[Reference, _Part] | None:
        found = self._parts.get(id(parameter))
        return found if found is not None and found[0]() is parameter else None

    def _watch(self, reference: Reference) -> None:
        parameter = reference()
        self._unzeroed.add(id(parameter))
        self._sums.discard(id(parameter))
        if id(parameter) not in self._watched:
            node = get_gradient_edge(parameter).node  # a hook of the tensor would run in torch.autograd.grad, too
            hook = functools.partial(_before_addition, weakref.ref(self), reference)
            self._handles.append(node.register_prehook(hook))
            self._watched.add(id(parameter))

    def before_step(self, optimizer: Optimizer) -> None:
        """Look at an optimizer that is about to use votes, and at some of them.

        Raises:
            ValueError: it is not made for votes, or what it would use are no votes.

        """
        held, me = self._held(optimizer), id(optimizer)
        if all(me in part.used_by for part in held.parts):
            return
        for group in held.groups:
            misuse.check_settings(optimizer, optimizer.param_groups[group])
        if any(part.of_a_sum for part in held.parts if me not in part.used_by):
            raise ValueError(misuse.SECOND_BACKWARD)
        misuse.check_scaler(optimizer)
        reference, part = held.parameters[self._turn % len(held.parameters)]
        gradient = getattr(reference(), "grad", None)
        gradient = None if gradient is None else local_of(gradient)
        if gradient is not None and me not in part.used_by and self._looks_at(gradient):
            misuse.check_votes(misuse.sample(gradient, self._turn))
        for part in held.parts:
            part.used_by.add(me)

    def _held(self, optimizer: Optimizer) -> _Holding:
        """Return which parameters of an optimizer are voted on."""
        sizes = tuple(len(group["params"]) for group in optimizer.param_groups)
        held = self._holdings.get(optimizer)
        if held is None or held.sizes != sizes:
            found = [[self._found(p) for p in group["params"]] for group in optimizer.param_groups]
            parameters = [one for group in found for one in group if one is not None]
            parts = list({id(part): part for _, part in parameters}.values())
            held = _Holding(sizes, [i for i, group in enumerate(found) if any(group)], parts, parameters)
            self._holdings[optimizer] = held
        return held

    def before_addition(self, parameter: Tensor) -> None:
        """Look at what lies in .grad, to which a gradient is about to be added.

        Votes there do no harm if the sum is not voted on, but zeroed: `begin` knows.
        """
        key, gradient = id(parameter), parameter.grad
        if key not in self._unzeroed or (gradient is not None and not self._looks_at(gradient)):
            return
        if gradient is not None and any(misuse.sample(gradient, self._turn)):
            self._sums.add(key)
        else:
            self._unzeroed.discard(key)
            self._sums.discard(key)

    def _looks_at(self, gradient: Tensor) -> bool:
        """Return whether to look at a gradient in this turn: on a device, where the host must wait, seldom."""
        seldom = self._turn & (self._turn - 1) == 0  # turns 1, 2, 4, 8, ...
        return misuse.can_be_read(gradient) and (seldom or gradient.device.type == "cpu")

    def _check_models(self) -> None:
        state = self._state()
        for model in _models_of(state):
            misuse.check_features(model)
            if self._members is not None:
                misuse.check_ranks(self._members, dist.get_process_group_ranks(model.process_group))
        self._models_known = True

    def _take_back(self) -> None:
        if not self._revocable():
            raise ValueError(misuse.DISCARDED)
        if not self._warned:
            warnings.warn(
                "mpisign: a backward whose votes no optimizer step used was taken back (revocable=True)", stacklevel=2
            )
            self._warned = True
        state: Any = self._state()
        state.rollback()

    def _revocable(self) -> bool:
        state: Any = self._state()
        return bool(state.revocable)


def _models_of(state: object) -> list[DistributedDataParallel]:
    """Return the models that have this state as their hook's: DDP does not tell a hook whose it is."""
    kinds: set[Any] = {DistributedDataParallel}
    while new := {kind for known in kinds for kind in known.__subclasses__()} - kinds:
        kinds |= new
    models = [thing for thing in gc.get_objects() if type(thing) in kinds]
    return [model for model in models if any(of is state for _, of in getattr(model, "_comm_hooks", ()))]


def _before_addition(guard: Reference, parameter: Reference, _gradients: object) -> None:
    watching, there = guard(), parameter()
    if watching is not None and there is not None:
        watching.before_addition(there)


def _remove(handles: list[RemovableHandle]) -> None:
    while handles:
        handles.pop().remove()


# One hook of all optimizers for all guards. A guard that is collected is not in the set any longer; the hook itself is
# not taken away then, for torch may be just going through its hooks.
_guards: weakref.WeakSet[Guard] = weakref.WeakSet()
_hook: list[RemovableHandle] = []


def _watch_steps(guard: Guard) -> None:
    _guards.add(guard)
    if not _hook:
        _hook.append(register_optimizer_step_pre_hook(_before_step))


def _forget_steps(guard: Guard) -> None:
    _guards.discard(guard)
    if not _guards:
        _remove(_hook)


def _before_step(optimizer: Optimizer, arguments: Arguments, keywords: dict[str, Any]) -> tuple[Arguments, Any] | None:
    """Look at a step. Where a closure computes the gradients, as Lightning's, it is done behind the closure."""
    closure = arguments[1] if len(arguments) > 1 else keywords.get("closure")
    if closure is None:
        _look(optimizer)
        return None

    def looked_at() -> Any:
        loss = closure()
        _look(optimizer)
        return loss

    others = {name: value for name, value in keywords.items() if name != "closure"}
    return (optimizer, looked_at, *arguments[2:]), others


def _look(optimizer: Optimizer) -> None:
    for guard in list(_guards):
        guard.before_step(optimizer)


# torch.compile leaves this function as it is, and compiles the step around it.
_before_step._torchdynamo_disable = True  # type: ignore[attr-defined]
