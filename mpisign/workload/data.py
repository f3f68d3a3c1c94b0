"""The pictures: synthetic by default, as the field's benchmarks do, or a folder of real ones."""

from __future__ import annotations

import atexit
import functools
import hashlib
import multiprocessing
import os
import signal
from collections.abc import Iterator
from itertools import islice
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from .models import CLASSES

Batch = tuple[Tensor, Tensor]  # float32 (batch, 3, size, size), int64 (batch,)

# torchvision's reference training: the channel means and deviations of ImageNet
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def synthetic(batch_size: int, image_size: int, *, seed: int) -> Iterator[Batch]:
    """Yield one batch of noise with random labels, for ever."""
    noise = torch.Generator().manual_seed(seed)
    pictures = torch.randn(batch_size, 3, image_size, image_size, generator=noise)
    labels = torch.randint(CLASSES, (batch_size,), generator=noise)
    while True:
        yield pictures, labels


def folder(path: Path, *, batch_size: int, image_size: int, seed: int) -> Iterator[Batch]:
    """Yield batches drawn with replacement from an ImageFolder tree, for ever; decoding is done here and now.

    Raises:
        ValueError: `path` is no such tree, or holds no pictures.

    """
    from torch.utils.data import RandomSampler

    pictures = _image_folder(path, evaluation(image_size))
    if len(pictures.classes) > CLASSES:
        raise ValueError(f"data: {path} has {len(pictures.classes)} classes, the models have {CLASSES}")
    draw = RandomSampler(pictures, replacement=True, num_samples=2**62, generator=torch.Generator().manual_seed(seed))
    return iter(DataLoader(pictures, batch_size, sampler=draw))


def evaluation(image_size: int) -> Any:
    """Return the usual transform for evaluation on ImageNet: the middle of the resized picture."""
    from torchvision.transforms import v2

    return v2.Compose([v2.Resize(image_size * 256 // 224), v2.CenterCrop(image_size), *_normalised()])


def augmentation(image_size: int) -> Any:
    """Return the usual transform for training on ImageNet: a random part, mirrored at random."""
    from torchvision.transforms import v2

    return v2.Compose([v2.RandomResizedCrop(image_size), v2.RandomHorizontalFlip(), *_normalised()])


def _normalised() -> list[Any]:
    from torchvision.transforms import v2

    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, DEVIATION)]


def _image_folder(path: Path, transform: Any) -> Any:
    from torchvision.datasets import ImageFolder

    try:
        return ImageFolder(str(path), transform)
    except OSError as error:
        raise ValueError(f"data: {path} is no folder of class folders with pictures: {error}") from None


class Pictures(Dataset[tuple[Tensor, int, int]]):
    """The pictures of an ImageFolder tree, each as (picture, label, number), by (epoch, number).

    How a picture is augmented follows from `seed`, the epoch and its number, whoever loads it: so neither the number
    of ranks and loading processes nor a restart changes it. A picture that can't be decoded comes as a grey one of
    label BROKEN, which the loss is to ignore; `fault` says why.

    Raises:
        ValueError: `path` is no such tree.

    """

    BROKEN = -1

    def __init__(self, path: Path, transform: Any, *, seed: int, image_size: int) -> None:
        self.folder, self.seed, self.image_size = _image_folder(path, transform), seed, image_size
        self.classes: list[str] = self.folder.classes

    def __len__(self) -> int:
        return len(self.folder.samples)

    def __getitem__(self, at: tuple[int, int]) -> tuple[Tensor, int, int]:
        epoch, number = at
        path, label = self.folder.samples[number]
        try:
            picture = self.folder.loader(path)
        except Exception:  # a decoder may raise anything
            return torch.zeros(3, self.image_size, self.image_size), self.BROKEN, number
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_of(self.seed, epoch, number))
            return self.folder.transform(picture), label, number

    def fault(self, number: int) -> str:
        """Say which picture that is, and why it can't be decoded."""
        path, _ = self.folder.samples[number]
        try:
            self.folder.loader(path)
        except Exception as error:
            return f"{path}: {error}"
        return f"{path}: could not be decoded a moment ago"

    def fingerprint(self) -> tuple[int, int, str]:
        """Return the number of classes, that of pictures, and a digest of all names: to compare between ranks."""
        digest = hashlib.sha256()
        for path, label in self.folder.samples:
            digest.update(f"{label} {os.path.relpath(path, self.folder.root)}\n".encode())
        return len(self.classes), len(self), digest.hexdigest()


def seed_of(*numbers: int) -> int:
    """Mix numbers into a seed of 63 bits."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


class TrainingSampler(DistributedSampler[Any]):
    """A rank's share of an epoch's pictures in their random order, as (epoch, number), from `start` on.

    All ranks have equally many; those that are left over sit this epoch out.
    """

    def __init__(self, pictures: Pictures, P: int, *, rank: int, seed: int) -> None:
        super().__init__(pictures, P, rank, shuffle=True, seed=seed, drop_last=True)
        self.start = 0

    def begin(self, epoch: int, start: int) -> None:
        """Choose the epoch, and how many of this rank's pictures were seen of it already."""
        self.set_epoch(epoch)
        self.start = start

    def __iter__(self) -> Iterator[Any]:
        return ((self.epoch, number) for number in islice(super().__iter__(), self.start, None))

    def __len__(self) -> int:
        return max(0, super().__len__() - self.start)  # another number of ranks may have seen all but the left over


class ValidationSampler(Sampler[Any]):
    """Every P-th picture, as (0, number): each exactly once over all ranks."""

    def __init__(self, pictures: Pictures, P: int, *, rank: int) -> None:
        self.numbers = range(rank, len(pictures), P)

    def __iter__(self) -> Iterator[Any]:
        return ((0, number) for number in self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)


def loader(pictures: Pictures, sampler: Sampler[Any], *, batch_size: int, workers: int, whole: bool, pin: bool) -> Any:
    """Return batches (pictures, labels, numbers); `whole`: without a smaller last one, `pin`: in pinned memory."""
    ended = multiprocessing.Event()
    atexit.register(ended.set)
    return DataLoader(
        pictures,
        batch_size,
        sampler=sampler,
        num_workers=workers,
        drop_last=whole,
        pin_memory=pin,
        persistent_workers=workers > 0,
        worker_init_fn=functools.partial(_leave_signals, ended),
    )


def _leave_signals(ended: Event, worker: int) -> None:
    """Leave to the rank what a scheduler or Ctrl-C sends to all processes of a job: it goes on to a checkpoint.

    Only when the rank has `ended`, a worker ends on SIGTERM: so Python ends those that are left.
    """

    def end(number: int, frame: Any) -> None:
        if ended.is_set():
            os._exit(0)

    signal.signal(signal.SIGTERM, end)
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
