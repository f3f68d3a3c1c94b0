"""Numbers that ranks add up while they go on working."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ..ranks.launch import Comm


class Sums:
    """A sum over all ranks of each number, by its name: started when it is made. Collective.

    Example:
        >>> sums = Sums(comm, stop=asked, loss=0.5)
        >>> loss.backward()
        >>> sums.wait()["stop"]  # how many ranks were asked to stop

    """

    def __init__(self, comm: Comm, **mine: float) -> None:
        self._names = tuple(mine)
        self._mine = np.array(list(mine.values()), np.float64)
        self._values = np.empty_like(self._mine)
        self._request = comm.Iallreduce(self._mine, self._values)

    def wait(self) -> dict[str, float]:
        """Return the sums by name, the same on all ranks."""
        self._request.Wait()
        return dict(zip(self._names, self._values.tolist(), strict=True))
