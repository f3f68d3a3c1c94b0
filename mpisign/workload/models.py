"""The models that are trained: torchvision's classifiers by name, a tiny one for tests, and anybody's own."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

CLASSES = 1000  # ImageNet's, whatever pictures are used: the size of the gradient is part of the benchmark
TINY = "tiny"


def names() -> list[str]:
    """Return the names of all models."""
    import torchvision

    return [TINY, *torchvision.models.list_models(module=torchvision.models)]


def build(name: str, image_size: int, *, classes: int = CLASSES) -> nn.Module:
    """Return the model with fresh weights; PACKAGE.MODULE:FUNCTION is called with `num_classes`, as torchvision's are.

    Raises:
        ValueError: there is no such model.

    """
    if ":" in name:
        return _own(name, classes)
    if name == TINY:
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, classes),
        )  # fmt: skip
    import torchvision  # its import takes seconds, which the tiny model does without

    if name not in names():
        raise ValueError(
            f"model: unknown name {name!r}; tiny, resnet50, vit_b_16 ... are known, see torchvision.models; "
            "one of your own is package.module:function"
        )
    extra: dict[str, object] = {}
    if name in ("googlenet", "inception_v3"):
        extra = {"aux_logits": False, "init_weights": True}
    if name.startswith("vit_"):
        extra = {"image_size": image_size}
    if name == "maxvit_t":
        extra = {"input_size": (image_size, image_size)}
    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes, **extra)
    return model


def _own(name: str, classes: int) -> nn.Module:
    """Return what a function of the user's makes; its module may lie in the current folder, as for `python -m`."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    package, _, function = name.partition(":")
    try:
        made = getattr(importlib.import_module(package), function)(num_classes=classes)
    except Exception as error:  # it may raise anything
        reason = " ".join(str(error).split())
        raise ValueError(f"model: {name} makes no model: {type(error).__name__}: {reason}") from error
    if not isinstance(made, nn.Module):
        raise ValueError(f"model: {name} makes no torch.nn.Module, but {type(made).__name__}")
    return made


def label(name: str) -> str:
    """Return the name as a part of a file's."""
    return name.replace(":", "-")


class Size(NamedTuple):
    """How large a model is: its coordinates, and the bytes that forward keeps for backward."""

    coordinates: int
    activations: int


def check(name: str, image_size: int, *, batch_size: int) -> Size:
    """Return how large a model is with such batches; nothing is computed.

    Raises:
        ValueError: the model is unknown, or cannot take such batches.

    """
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.device("meta"):
        try:
            model = build(name, image_size)
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                output = model(torch.empty(batch_size, 3, image_size, image_size))  # held, as is what it keeps
        except Exception as error:  # anybody's model may raise anything
            if str(error).startswith("model: "):
                raise
            reason = " ".join(str(error).split())
            raise ValueError(
                f"image_size: {name} takes no batch of {batch_size} pictures of {image_size} x {image_size}: {reason}"
            ) from None
    del output
    for parameter in model.parameters():
        kept.pop(parameter.untyped_storage()._cdata, None)
    return Size(sum(parameter.numel() for parameter in model.parameters()), sum(kept.values()))


def parallel(model: nn.Module, bucket_mb: float | None = None) -> DistributedDataParallel:
    """Return the replica of `model` whose gradients go through a communication hook, bucket by bucket. Collective.

    DDP's own buckets (None) are of 25 MiB, behind a first one of 1 MiB; those of a size asked for, even of 25, are not.
    BatchNorm's statistics stay each rank's own: no method shall pay for broadcasting them.
    """
    known = inspect.signature(DistributedDataParallel).parameters  # the option has two names
    own: dict[str, Any] = {next(name for name in ("forward_sync_buffers", "broadcast_buffers") if name in known): False}
    if bucket_mb is not None:
        own["bucket_cap_mb"] = bucket_mb
    return DistributedDataParallel(model, gradient_as_bucket_view=True, **own)
