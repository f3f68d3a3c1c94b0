"""Does one-bit majority-vote gradient exchange (signSGD) pay on your cluster? Measure it, and train with it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .coding.bits import pack, unpack
    from .coding.counting import majority
    from .coding.ties import TIES, Tie
    from .voting.exchange import EXCHANGES, vote
    from .voting.hook import VoteState, vote_hook

__all__ = ["EXCHANGES", "TIES", "Tie", "VoteState", "majority", "pack", "unpack", "vote", "vote_hook"]

# Loaded when first used: `python -m mpisign.bench --help` shall not wait for torch.
_HOMES = {
    "coding.bits": ("pack", "unpack"),
    "voting.exchange": ("EXCHANGES", "vote"),
    "voting.hook": ("VoteState", "vote_hook"),
    "coding.counting": ("majority",),
    "coding.ties": ("TIES", "Tie"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
