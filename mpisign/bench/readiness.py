"""When the buckets of a backward are ready: before that no method can begin to exchange them."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ranks import clock

if TYPE_CHECKING:
    from ..ranks.launch import Comm
    from ..voting.bucket import HeldBucket


class Readiness:
    """When each bucket was ready in the last backwards that nobody exchanged during.

    Moments are noted alone, which takes a bucket less than a microsecond of the backward; a device is waited for
    when they are asked for.
    """

    LAST = 100

    def __init__(self) -> None:
        self._backwards: deque[tuple[list[int], list[clock.Moment]]] = deque(maxlen=self.LAST)

    def note(self, buckets: list[HeldBucket], moments: list[clock.Moment]) -> None:
        """Note a backward: its buckets; when it began, when each of them was ready, and when it ended."""
        sizes = [bucket.tensor.numel() * bucket.tensor.element_size() for bucket in buckets]
        self._backwards.append((sizes, moments))

    def buckets(self, comm: Comm) -> list[dict[str, Any]]:
        """Return each bucket's bytes, and when it is ready as a share of backward, in that order. Collective.

        The share is the median over backwards with these buckets (DDP's first one has others), of the slowest rank.
        """
        sizes = self._backwards[-1][0]
        shares = [
            [clock.between(began, moment) / clock.between(began, ended) for moment in ready]
            for same, (began, *ready, ended) in self._backwards
            if same == sizes
        ]
        slowest = np.max(comm.allgather(np.median(shares, axis=0)), axis=0)
        return [{"bytes": size, "ready": float(share)} for size, share in zip(sizes, slowest, strict=True)]
