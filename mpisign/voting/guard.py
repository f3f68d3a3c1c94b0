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
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import register_optimizer_step_pre_hook

from . import misuse

if TYPE_CHECKING:
    from torch.distributed import GradBucket  # type: ignore[attr-defined]
    from torch.optim import Optimizer
    from torch.utils.hooks import RemovableHandle

Reference: TypeAlias = Callable[[], Any]  # what weakref.ref gives


class _Votes:
    """The votes of one backward, and what became of them."""

    def __init__(self, *, expected: bool = False, of_a_sum: bool = False) -> None:
        self.expected = expected  # that an optimizer uses them: one has used earlier votes on the same parameters
        self.used_by: set[int] = set()  # ids of optimizers
        self.forgiven = False  # they were taken back
        self.of_a_sum = of_a_sum  # the gradient that was voted on had been added to earlier votes
        self.versions: list[tuple[Reference, int]] = []  # of a parameter of each bucket, when it was voted on

    def discarded(self) -> bool:
        """Return whether an optimizer should have used them, and nothing did."""
        if self.used_by or self.forgiven or not self.expected:
            return False
        # A compiled step, or one by hand, is not seen, but the parameters have changed.
        return all(there is None or there._version == version for there, version in self._watched())

    def _watched(self) -> Iterator[tuple[Any, int]]:
        return ((reference(), version) for reference, version in self.versions)


class Guard:
    """Refuses misuse of the votes of one state.

    Args:
        state: The state that DDP has as its hook's; only a weak reference to it is kept. `revocable` says whether
            a step whose votes nobody used is taken back by `rollback()` (with a warning, once) or refused.
        members: The global ranks that vote, in the order of the communicator; None: not known, not compared.

    """

    def __init__(self, state: Any, members: Sequence[int] | None) -> None:
        self._state, self._members = weakref.ref(state), members
        self._ranks_known = self._warned = False
        self._turn = 0  # backwards that were voted on
        self._now = _Votes()
        self._votes: dict[int, tuple[Reference, _Votes]] = {}  # by the id of a parameter, its last ones
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

    def begin(self, bucket: GradBucket) -> None:
        """Look at the first bucket of a backward, before its vote.

        Raises:
            ValueError: DDP averages over other ranks, a gradient was added to votes, or the votes of the backward
                before were not used.

        """
        if not self._ranks_known:
            self._check_ranks()
        of_a_sum = not self._sums.isdisjoint(map(id, bucket.parameters()))
        if of_a_sum and not self._revocable():
            raise ValueError(misuse.SECOND_BACKWARD)
        before = self._votes_on(bucket.parameters()[0])
        if before is not None and before.discarded():
            self._take_back()
        expected = before is not None and (before.expected or bool(before.used_by))
        self._now = _Votes(expected=expected, of_a_sum=of_a_sum)
        self._turn += 1

    def voted(self, bucket: GradBucket) -> None:
        """Note a bucket that has been voted on, before its future is fulfilled: after that a step may use it."""
        parameters, votes = bucket.parameters(), self._now
        for parameter in parameters:
            reference, _ = self._votes.get(id(parameter), (None, None))
            if reference is None or reference() is not parameter:
                reference = weakref.ref(parameter)
                self._watched.discard(id(parameter))  # another's, that had this id
            self._votes[id(parameter)] = (reference, votes)
        first = parameters[0]
        votes.versions.append((self._votes[id(first)][0], first._version))
        for parameter in (first, parameters[-1]):  # DDP makes its buckets anew after the first backward
            self._watch(parameter)

    def _watch(self, parameter: Tensor) -> None:
        self._unzeroed.add(id(parameter))
        self._sums.discard(id(parameter))
        if id(parameter) not in self._watched:
            node = get_gradient_edge(parameter).node  # a hook of the tensor would run in torch.autograd.grad, too
            hook = functools.partial(_before_addition, weakref.ref(self), weakref.ref(parameter))
            self._handles.append(node.register_prehook(hook))
            self._watched.add(id(parameter))

    def before_step(self, optimizer: Optimizer) -> None:
        """Look at an optimizer that is about to use votes, and at some of them.

        Raises:
            ValueError: it is not made for votes, or what it would use are no votes.

        """
        used: set[_Votes] = set()
        fresh: list[Tensor] = []
        for group in optimizer.param_groups:
            found = [p for p in group["params"] if self._is_fresh(p, optimizer, used)]
            if found:
                misuse.check_settings(optimizer, group)
                fresh += found
        if not fresh:
            return
        if any(votes.of_a_sum for votes in used):
            raise ValueError(misuse.SECOND_BACKWARD)
        misuse.check_scaler(optimizer)
        parameter = fresh[self._turn % len(fresh)]
        gradient = parameter.grad
        if gradient is not None and self._looks_at(gradient):
            misuse.check_votes(misuse.sample(gradient, self._turn))
        for votes in used:
            votes.used_by.add(id(optimizer))

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

    def _is_fresh(self, parameter: Tensor, optimizer: Optimizer, used: set[_Votes]) -> bool:
        """Return whether there are votes on a parameter that this optimizer has not used, and add them to `used`."""
        reference, votes = self._votes.get(id(parameter), (None, None))
        if reference is None or votes is None or id(optimizer) in votes.used_by or reference() is not parameter:
            return False
        used.add(votes)
        return True

    def _votes_on(self, parameter: Tensor) -> _Votes | None:
        reference, votes = self._votes.get(id(parameter), (None, None))
        return votes if reference is not None and reference() is parameter else None

    def _check_ranks(self) -> None:
        state = self._state()
        for model in _models_of(state) if self._members is not None else ():
            misuse.check_ranks(self._members or (), dist.get_process_group_ranks(model.process_group))
        self._ranks_known = True

    def _take_back(self) -> None:
        if not self._revocable():
            raise ValueError(misuse.DISCARDED)
        if not self._warned:
            warnings.warn("a backward whose votes no optimizer step used was taken back (revocable=True)", stacklevel=2)
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


def _before_step(optimizer: Optimizer, _arguments: object, _keywords: object) -> None:
    for guard in list(_guards):
        guard.before_step(optimizer)


# torch.compile leaves this function as it is, and compiles the step around it.
_before_step._torchdynamo_disable = True  # type: ignore[attr-defined]
