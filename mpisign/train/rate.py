"""The learning rate of a training: where it comes from, how it is warmed up to, and how it falls."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .recipe import Recipe

# Dense SGD's rate for so many pictures a step. It is linear in them: Goyal et al., arXiv 1706.02677, section 2.1.
DENSE, PICTURES = 0.1, 256
VOTES, ADAMW = 1e-4, 1e-3


@dataclass(frozen=True)
class Rate:
    """The learning rate of a recipe: it rises from 0 to `peak`, and then falls. `origin` tells why it is that peak."""

    recipe: Recipe
    peak: float
    origin: str

    def at(self, progress: float) -> float:
        """Return the rate when so many epochs, a fraction too, are done."""
        asked = self.recipe
        if progress < asked.warmup_epochs:
            return self.peak * progress / asked.warmup_epochs
        if asked.lr_schedule == "step":
            return self.peak * 0.1 ** int(progress / asked.lr_step)
        left = asked.epochs - asked.warmup_epochs  # the cosine has what the warm-up leaves
        share = min(1.0, (progress - asked.warmup_epochs) / left) if left > 0 else 0.0
        return self.peak * (1 + math.cos(math.pi * share)) / 2

    def told(self) -> str:
        """Say what the rate is, and where it comes from."""
        return f"learning rate: {self.peak:.4g}, {self.origin}"

    def fault(self) -> str | None:
        """Say what a user may not have meant, or None."""
        asked = self.recipe
        if asked.warmup_epochs <= asked.epochs:
            return None
        return (
            f"the warm-up of {asked.warmup_epochs:g} epochs is longer than the training of {asked.epochs}: the rate "
            f"rises to {self.at(asked.epochs):.4g} only (--warmup-epochs)"
        )


def rate_of(recipe: Recipe, *, ranks: int) -> Rate:
    """Return the rate that is asked for, or else the default of the recipe's method and optimizer."""
    if recipe.lr is not None:
        return Rate(recipe, recipe.lr, "as asked for")
    if recipe.votes:
        return Rate(recipe, VOTES, "the default of votes")
    if recipe.optimizer == "adamw":
        return Rate(recipe, ADAMW, "the default of adamw")
    pictures = recipe.batch_size * ranks
    origin = (
        f"the default of dense sgd, {DENSE:g} * {pictures} / {PICTURES}: a step has {pictures} pictures of all ranks"
    )
    return Rate(recipe, DENSE * pictures / PICTURES, origin)
