"""The names of all methods: a dense rival's, or that of an exchange by which is voted."""

from __future__ import annotations

from .baselines import BASELINES
from .exchange import EXCHANGES

_VOTE = "vote-"
METHODS = (*BASELINES, *(_VOTE + name for name in EXCHANGES))


def exchange_of(method: str) -> str | None:
    """Return the name in EXCHANGES by which a method votes; None for a name in BASELINES."""
    return method.removeprefix(_VOTE) if method.startswith(_VOTE) else None
