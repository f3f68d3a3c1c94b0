"""What no training writes into a checkpoint: files may be made up, and their digests with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from .weights import is_plain

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

# What model.pt holds, beside what checkpoint.read has looked at.
KEYS = {"config": dict, "position": dict, "classes": list, "pictures": tuple, "model": dict, "optimizer": dict}
OPTIONS = {"model", "method", "optimizer"}  # of config, that a checkpoint can't do without
# What an optimizer keeps of a parameter, by --optimizer.
STATE = {"sgd": {"momentum_buffer"}, "adamw": {"step", "exp_avg", "exp_avg_sq"}}
VOTE = {"steps", "rank", "ranks", "momentum"}


def of_common(common: dict[str, Any], start: object) -> str | None:
    """Say what is wrong with what is common to all ranks, or None; `start` is the position of one that begins."""
    for key, kind in KEYS.items():
        if not isinstance(common.get(key), kind):
            return f"is damaged: {key} is not a {kind.__name__}"
    config, classes = common["config"], common["classes"]
    if not set(config) >= OPTIONS or not all(isinstance(one, (str, int, float, type(None))) for one in config.values()):
        return "is damaged: config does not hold options"
    if [type(part) for part in common["pictures"]] != [int, int, str] or {type(name) for name in classes} != {str}:
        return "is damaged: classes or pictures are not valid"
    position, least = common["position"], asdict(start)  # type: ignore[call-overload]
    if {name: type(value) for name, value in position.items()} != {name: type(value) for name, value in least.items()}:
        return "is damaged: position is not valid"
    losses = position["losses"]  # may be below 0; what else is counted may not
    counted = all(least[name] <= value < math.inf for name, value in position.items() if name != "losses")
    if not counted or not math.isfinite(losses) or position["step"] != common["step"]:
        return "is damaged: position is not valid"
    return None


def of_optimizer(kept: dict[str, Any], optimizer: Optimizer, names: set[str]) -> str | None:
    """Say what is wrong with an optimizer's state, or None; `names` is what such a one keeps of a parameter."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    groups, state = kept.get("param_groups"), kept.get("state")
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        return "is damaged: optimizer has no groups"
    if [group.get("params") for group in groups] != [list(range(len(weights)))] or not isinstance(state, dict):
        return f"is damaged: optimizer is not of {len(weights)} parameters"
    for number, parts in state.items():
        if type(number) is not int or not 0 <= number < len(weights):
            return "is damaged: optimizer has the state of something else"
        if not isinstance(parts, dict) or set(parts) != names:
            return f"is damaged: optimizer keeps something else of parameter {number}"
        for name, part in parts.items():
            wanted = torch.Size([]) if name == "step" else weights[number].shape
            if not (is_plain(part) and part.is_floating_point() and part.shape == wanted and part.isfinite().all()):
                return f"is damaged: optimizer's {name} of parameter {number} is not valid"
    return None


def of_own(own: dict[str, Any] | None, buffers: Sequence[Tensor]) -> str | None:
    """Say what is wrong with a rank's own, or None; what takes the momentum over looks at its numbers and shapes."""
    if own is None:
        return None
    kept, vote = own.get("buffers"), own.get("vote")
    if not isinstance(kept, list) or not all(map(is_plain, kept)):
        return "is damaged: a rank's buffers are not valid"
    if [(part.shape, part.dtype) for part in kept] != [(buffer.shape, buffer.dtype) for buffer in buffers]:
        return "holds another model: a rank's buffers have other shapes"
    if vote is None:
        return None
    if not isinstance(vote, dict) or set(vote) != VOTE or type(vote["rank"]) is not int:
        return "is damaged: a rank's vote is not valid"
    momentum = vote["momentum"]
    if not isinstance(momentum, list) or not all(one is None or is_float32(one) for one in momentum):
        return "is damaged: a rank's momentum is not valid"
    return None


def is_float32(thing: object) -> bool:
    """Tell whether that is a plain tensor of float32."""
    return is_plain(thing) and thing.dtype == torch.float32
