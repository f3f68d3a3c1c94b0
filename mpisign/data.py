"""The pictures: synthetic by default, as the field's benchmarks do, or a folder of real ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from .models import CLASSES

Batch = tuple[Tensor, Tensor]  # float32 (batch, 3, size, size), int64 (batch,)

# torchvision's reference training: the channel means and deviations of ImageNet
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def synthetic(batch_size: int, image_size: int, seed: int) -> Iterator[Batch]:
    """Yield one batch of noise with random labels, for ever."""
    noise = torch.Generator().manual_seed(seed)
    pictures = torch.randn(batch_size, 3, image_size, image_size, generator=noise)
    labels = torch.randint(CLASSES, (batch_size,), generator=noise)
    while True:
        yield pictures, labels


def folder(path: Path, batch_size: int, image_size: int, seed: int) -> Iterator[Batch]:
    """Yield batches drawn with replacement from an ImageFolder tree, for ever; decoding is done here and now.

    Raises:
        ValueError: `path` is no such tree, or holds no pictures.

    """
    from torch.utils.data import DataLoader, RandomSampler
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    evaluate = v2.Compose([
        v2.Resize(image_size * 256 // 224), v2.CenterCrop(image_size), v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, DEVIATION),
    ])  # fmt: skip
    try:
        pictures = ImageFolder(str(path), evaluate)
    except OSError as error:
        raise ValueError(f"data: {path} is no folder of class folders with pictures: {error}") from None
    if len(pictures.classes) > CLASSES:
        raise ValueError(f"data: {path} has {len(pictures.classes)} classes, the models have {CLASSES}")
    draw = RandomSampler(pictures, replacement=True, num_samples=2**62, generator=torch.Generator().manual_seed(seed))
    return iter(DataLoader(pictures, batch_size, sampler=draw))
