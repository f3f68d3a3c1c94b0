"""Does one-bit majority-vote gradient exchange (signSGD) pay on your cluster? Measure it, and train with it.

`mpisign --help` lists the commands. In a training script of your own:

    state = mpisign.VoteState(MPI.COMM_WORLD)
    ddp_model.register_comm_hook(state, mpisign.vote_hook)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .coding.bits import pack, unpack
    from .coding.counting import majority
    from .coding.ties import TIES, Tie
    from .voting.exchange import EXCHANGES, vote
    from .voting.hook import VoteState, vote_hook
    from .voting.update import optimizer

__version__ = "0.1.0"
__all__ = ["EXCHANGES", "TIES", "Tie", "VoteState", "majority", "optimizer", "pack", "unpack", "vote", "vote_hook"]

# Loaded when first used: `mpisign bench --help` must not wait for torch.
_HOMES = {
    "coding.bits": ("pack", "unpack"),
    "voting.exchange": ("EXCHANGES", "vote"),
    "voting.hook": ("VoteState", "vote_hook"),
    "voting.update": ("optimizer",),
    "coding.counting": ("majority",),
    "coding.ties": ("TIES", "Tie"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})  # help() and completion see the names that are not loaded yet
