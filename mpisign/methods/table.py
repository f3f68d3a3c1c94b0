"""The table of all methods, and the making of those that a run has chosen."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from .method import Method, Ready, Terms
from .rivals import RIVALS
from .votes import VOTES

if TYPE_CHECKING:
    from ..ranks.launch import Comm

METHODS: dict[str, Method] = {method.name: method for method in (*RIVALS, *VOTES)}


@contextlib.contextmanager
def ready(comm: Comm, methods: Mapping[str, Method], *, terms: Terms) -> Iterator[dict[str, Ready]]:
    """Make methods ready, under the names that they are given, and free what they hold. Collective.

    Votes share one momentum, or each would have its own of the size of the gradient; so methods that are compared
    start from the same. They exchange during backward until `set_schedule` says otherwise. torch.distributed must
    have been started.
    """
    resources, made = contextlib.ExitStack(), dict[str, Ready]()
    traitor = None
    if terms.adversary is not None:
        from ..voting.adversary import Traitor

        traitor = Traitor(terms.adversary, terms.seed, rank=comm.rank)
    for name, method in methods.items():
        one = made[name] = method.make(comm, terms, resources)
        one.method, one.traitor = method, traitor
        one.set_schedule("overlap")
    votes = [one.state for one in made.values() if one.method.kind == "vote"]
    for other in votes[1:]:
        other.share_momentum(votes[0])
    yield made
    # Not if the block raises: on one rank alone this may wait for the others, who wait for it.
    resources.close()
