"""How good a model is: its loss and accuracies on the pictures for validation, over all ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..workload.data import Pictures, ValidationSampler, loader
from .stop import Stopped
from .sums import Sums

if TYPE_CHECKING:
    from ..ranks.launch import Comm
    from .broken import Broken
    from .recipe import Recipe


def output_of(model: nn.Module, pictures: Tensor, *, precision: str) -> Tensor:
    """Return what a model says of a batch, in fp32; `precision` is that of its arithmetic."""
    with torch.autocast(pictures.device.type, torch.bfloat16, enabled=precision == "bf16"):
        output: Tensor = model(pictures)
    return output.float()


def sum_of_losses(output: Tensor, labels: Tensor) -> Tensor:
    """Return the sum of the cross entropies of the pictures that could be decoded."""
    return cross_entropy(output, labels, ignore_index=Pictures.BROKEN, reduction="sum")


class Evaluation:
    """The pictures for validation, each on one rank. Collective, as all it does."""

    def __init__(
        self, comm: Comm, config: Recipe, *, pictures: Pictures, device: torch.device, broken: Broken,
        stop: Callable[[], bool],
    ) -> None:  # fmt: skip
        self.comm, self.config, self.device = comm, config, device
        self.pictures, self.broken, self.stop = pictures, broken, stop
        sampler = ValidationSampler(pictures, comm.size, rank=comm.rank)
        self.batches = loader(pictures, sampler, batch_size=config.batch_size, workers=config.workers, whole=False,
                              pin=device.type == "cuda")  # fmt: skip
        most = math.ceil(len(pictures) / comm.size)
        self.steps = math.ceil(most / config.batch_size)  # of the rank that has most pictures

    @torch.no_grad()
    def of(self, model: nn.Module) -> dict[str, float]:
        """Return the loss and accuracies of a model; its statistics are averaged over the ranks before.

        Without more than five classes there is no top-5: all pictures would be right.

        Raises:
            Stopped: on all ranks: one of them was told to stop meanwhile.

        """
        average_statistics(self.comm, model)
        model.eval()
        scores, batches = np.zeros(4), iter(self.batches)
        for _ in range(self.steps):
            batch = next(batches, None)
            asked = Sums(self.comm, stop=self.stop())
            if batch is not None:
                pictures, labels, numbers = batch
                self.broken.heed(self.pictures, labels, numbers)
                scores += self._scores(model, pictures.to(self.device), labels.to(self.device))
            if asked.wait()["stop"]:
                raise Stopped
        count, loss, first, among = scores
        everyones = Sums(self.comm, count=count, loss=loss, first=first, among=among).wait()
        pictures_seen = max(everyones["count"], 1)
        top5 = {"top5": everyones["among"] / pictures_seen} if len(self.pictures.classes) > 5 else {}
        return {"validation_loss": everyones["loss"] / pictures_seen, "top1": everyones["first"] / pictures_seen,
                **top5, "validated": everyones["count"]}  # fmt: skip

    def _scores(self, model: nn.Module, pictures: Tensor, labels: Tensor) -> NDArray[np.float64]:
        """Return a batch's number of pictures, sum of losses, and how many were right first and among five."""
        output = output_of(model, pictures, precision=self.config.precision)
        right = output.topk(min(5, len(self.pictures.classes))).indices == labels[:, None]
        known, loss = labels != Pictures.BROKEN, float(sum_of_losses(output, labels))
        return np.array([int(known.sum()), loss, int(right[:, 0].sum()), int(right.sum())], float)


@torch.no_grad()
def average_statistics(comm: Comm, model: nn.Module) -> None:
    """Set BatchNorm's running means and variances to their mean over the ranks. Collective.

    Each rank keeps its own while it trains. (The mean of the variances leaves out how far the means lie apart.)
    """
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if buffers:
        flat = torch.cat([buffer.reshape(-1) for buffer in buffers]).double().cpu().numpy()
        total = np.empty_like(flat)
        comm.Allreduce(flat, total)
        means = torch.split(torch.from_numpy(total / comm.size), [buffer.numel() for buffer in buffers])
        for buffer, mean in zip(buffers, means, strict=True):
            buffer.copy_(mean.reshape(buffer.shape))
