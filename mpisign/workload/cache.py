"""Caches as backward leaves them: without what was written long before."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

PASSES = 2  # over a cache's size: one leaves some of what was in it
UNKNOWN = 32 << 20  # bytes, where nobody says how large it is
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


class Flush:
    """Drives out of the caches of this core (on CUDA: of the device) what lies in them, when called.

    `bytes` is the size of the largest of them. Twice that is read: of `at_hand`, tensors on the device that lie around
    anyway, and of a buffer for the rest; the ranks of a node have one each.
    """

    def __init__(self, device: torch.device, at_hand: Iterable[Tensor] = ()) -> None:
        if device.type == "cuda":
            self.bytes = int(torch.cuda.get_device_properties(device).L2_cache_size)
        else:
            self.bytes = largest_cache()
        left, self._read = PASSES * self.bytes, list[Tensor]()
        for tensor in sorted(at_hand, key=torch.numel, reverse=True):
            if left > 0:
                self._read.append(tensor.detach())
                left -= tensor.numel() * tensor.element_size()
        self._buffer = torch.zeros(max(0, left) // 4, device=device)

    def __call__(self) -> None:
        """Read it all."""
        for tensor in (*self._read, self._buffer):
            tensor.sum()


def largest_cache(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Return the bytes of the largest cache of the first core, as Linux tells them."""
    said = [re.fullmatch(r"(\d+)([KMG])\n?", file.read_text()) for file in folder.glob("index*/size")]
    return max((int(size[1]) * _UNITS[size[2]] for size in said if size), default=UNKNOWN)
