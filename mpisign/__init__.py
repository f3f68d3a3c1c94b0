"""Does one-bit majority-vote gradient exchange (signSGD) pay on your cluster? Measure it, and train with it.

`mpisign --help` lists the commands. In a training script of your own:

    state = mpisign.VoteState()
    ddp_model.register_comm_hook(state, mpisign.vote_hook)
    optimizer = mpisign.optimizer(ddp_model.parameters(), lr=1e-3)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .coding.bits import pack, unpack
    from .coding.counting import majority
    from .coding.rules import Lion, Noisy, Rule, SignSGD, Signum, Stochastic
    from .coding.ties import TIES, Tie
    from .voting.exchange import EXCHANGES, plan, vote
    from .voting.fsdp import vote_across
    from .voting.hook import VoteState, vote_hook
    from .voting.update import optimizer

__version__ = "0.1.0"
__all__ = [
    "EXCHANGES", "TIES", "Lion", "Noisy", "Rule", "SignSGD", "Signum", "Stochastic", "Tie", "VoteState", "majority",
    "optimizer", "pack", "plan", "unpack", "vote", "vote_across", "vote_hook",
]  # fmt: skip

# Loaded when first used: `mpisign bench --help` must not wait for torch.
_HOMES = {
    "coding.bits": ("pack", "unpack"),
    "coding.counting": ("majority",),
    "coding.rules": ("Lion", "Noisy", "Rule", "SignSGD", "Signum", "Stochastic"),
    "coding.ties": ("TIES", "Tie"),
    "voting.exchange": ("EXCHANGES", "plan", "vote"),
    "voting.fsdp": ("vote_across",),
    "voting.hook": ("VoteState", "vote_hook"),
    "voting.update": ("optimizer",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})  # help() and completion see the names that are not loaded yet
