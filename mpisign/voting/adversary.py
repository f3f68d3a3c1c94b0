"""What a traitor sends instead of its signs or its gradient. It does not see what other ranks send."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    import numpy as np

    from ..coding.bits import Floats, Words

T = TypeVar("T", bound=Any)

SCALE = -100.0  # of the gradient that a traitor sends to spoil a mean


class Occasion(NamedTuple):
    """What a traitor has at hand when it is to send a bucket."""

    n: int  # coordinates
    previous: Any  # what it would honestly have sent for this bucket in the step before; the same, in the first step
    own: np.random.Generator  # coins of this rank, bucket and step
    shared: np.random.Generator  # coins that all traitors throw alike, the same in every step


class Adversary(NamedTuple):
    """A kind of traitor: what becomes of its words, uint64 (W,), and of its gradient, float32 (n,)."""

    summary: str
    words: Callable[[Words, Occasion], None]
    gradient: Callable[[Floats, Occasion], None]


def _invert(words: Words, occasion: Occasion) -> None:
    import numpy as np

    from ..coding.bits import clear_padding

    np.invert(words, out=words)
    clear_padding(words, occasion.n)


def _throw(words: Words, coins: np.random.Generator, n: int) -> None:
    import numpy as np

    from ..coding.bits import clear_padding

    words[:] = coins.integers(0, 2**64, len(words), np.uint64)
    clear_padding(words, n)


def _zero(sent: Any, occasion: Occasion) -> None:
    sent[:] = 0


def _delay(sent: Any, occasion: Occasion) -> None:
    sent[:] = occasion.previous


def _size(gradient: Floats) -> np.float32:
    """Return the root mean square: what is sent instead has the same size, lest it be conspicuous."""
    import numpy as np

    return np.float32(np.sqrt(np.mean(np.square(gradient), dtype=np.float64))) if len(gradient) else np.float32(0)


def _noise(gradient: Floats, occasion: Occasion) -> None:
    import numpy as np

    gradient[:] = _size(gradient) * occasion.own.standard_normal(len(gradient), np.float32)


def _false_direction(gradient: Floats, occasion: Occasion) -> None:
    import numpy as np

    gradient[:] = _size(gradient) * occasion.shared.choice(np.array([-1, 1], np.float32), len(gradient))


def _scale(factor: float) -> Callable[[Floats, Occasion], None]:
    def scaled(gradient: Floats, occasion: Occasion) -> None:
        gradient *= factor

    return scaled


# Inverting is the strongest blind adversary of a vote (arXiv 1810.05291, theorem 2); a scale is lost on signs.
ADVERSARIES: dict[str, Adversary] = {
    "invert": Adversary("the opposite of every sign; the negative gradient", _invert, _scale(-1)),
    "random": Adversary("a fair coin a coordinate; noise",
                        lambda words, occasion: _throw(words, occasion.own, occasion.n), _noise),
    "zero": Adversary("constant bits, as for a gradient of 0", _zero, _zero),
    "delayed": Adversary("what it ought to have sent a step ago", _delay, _delay),
    "collude": Adversary("one false direction, the same for all traitors in all steps",
                         lambda words, occasion: _throw(words, occasion.shared, occasion.n), _false_direction),
    "scale": Adversary(f"{SCALE:g} times the gradient; as a vote that is the opposite sign", _invert, _scale(SCALE)),
}  # fmt: skip


class Memory(NamedTuple):
    """What a traitor would honestly have sent for a bucket: words or a gradient."""

    step: int
    latest: Any  # in that step
    before: Any  # in the one before


class Traitor:
    """A rank that does not send what it should.

    `seed` is the run's, the same on all ranks. `memory` is what "delayed" needs between steps.
    """

    def __init__(self, name: str, seed: int, *, rank: int) -> None:
        self.kind, self.seed, self.rank = ADVERSARIES[name], seed, rank
        self.remembers = name == "delayed"
        self.memory: dict[int, Memory] = {}  # by bucket

    def lie_in_words(self, words: Words, n: int, *, bucket: int, step: int) -> None:
        """Replace the words of a bucket of n coordinates, in place."""
        self.kind.words(words, self._occasion(words, n, bucket, step))

    def lie_in_gradient(self, gradient: Floats, bucket: int, *, step: int) -> None:
        """Replace the gradient of a bucket, in place."""
        self.kind.gradient(gradient, self._occasion(gradient, len(gradient), bucket, step))

    def _occasion(self, honest: T, n: int, bucket: int, step: int) -> Occasion:
        import numpy as np

        own = np.random.default_rng([self.seed, self.rank, bucket, step])
        shared = np.random.default_rng([self.seed, bucket])
        return Occasion(n, self._previous(honest, bucket, step) if self.remembers else honest, own, shared)

    def _previous(self, honest: T, bucket: int, step: int) -> T:
        """Return the honest form of the step before; a second call in the same step returns the same."""
        memory = self.memory.get(bucket)
        if memory is None or memory.latest.shape != honest.shape:
            memory = Memory(step, honest.copy(), honest.copy())
        elif memory.step != step:
            memory = Memory(step, honest.copy(), memory.latest)
        self.memory[bucket] = memory
        previous: T = memory.before
        return previous


def check_adversary(name: str | None) -> None:
    """Raise a ValueError if there is no such kind of traitor; None is an honest rank."""
    if name is not None and name not in ADVERSARIES:
        raise ValueError(f"adversary: unknown name {name!r}, choose from {', '.join(ADVERSARIES)}")


def traitors(number: int, P: int, *, seed: int) -> list[int]:
    """Choose `number` of P ranks, the same for the same seed; rank 0, which reports, is the last to be chosen.

    Raises:
        ValueError: there are fewer ranks than traitors, or `number` is negative.

    """
    if not 0 <= number <= P:
        raise ValueError(f"adversaries: {number} of {P} ranks cannot be traitors")
    import numpy as np

    order = [*(1 + np.random.default_rng(seed).permutation(max(P - 1, 0))).tolist(), 0]
    return sorted(order[:number])
