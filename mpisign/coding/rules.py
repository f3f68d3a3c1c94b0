"""What a worker signs: the rules, and what seeds their dither."""

from __future__ import annotations

from typing import NamedTuple

from .ties import MASK, mix

DITHERS = ("", "normal", "uniform")

# A beta below it is lost when 1 - beta is rounded to float32; and a weight of 1 may carry a momentum past the largest
# float, which no smaller weight can.
SMALLEST_BETA = 1e-7
LARGEST_SCALE = 1e30  # so that no dither overflows

# Of the 64 bits x that a coordinate throws, "uniform" takes the upper 24: (x >> 40) * UNIT - MEAN, an exact float32 and
# as often above 0 as below. "normal" adds its eight bytes, (sum - MEAN) * UNIT: BYTES masks every second one, so that
# they can be added in pairs, and times PAIRS the four pairs add up in the upper 16 bits.
UNIFORM_UNIT, UNIFORM_MEAN = 2.0**-23, 1 - 2.0**-24
NORMAL_UNIT, NORMAL_MEAN = (8 * (256**2 - 1) / 12) ** -0.5, 8 * 255 // 2
BYTES, PAIRS = 0x00FF00FF00FF00FF, 0x0001000100010001


class Rule(NamedTuple):
    """What is signed: u = m + (1 - vote)(g - m), and then m becomes m + (1 - keep)(g - m).

    g is the gradient, m the worker's own momentum, which is 0 for ever where both betas are 0. If there is a dither,
    what is signed is u + scale * dither, with a fresh one for each rank, coordinate and step. "normal" has variance 1:
    it is the sum of eight random bytes (Irwin-Hall), so it needs no logarithm, is the same bits everywhere, and ends
    at 4.9. "uniform" lies in (-1, 1).
    """

    name: str
    vote: float = 0.0
    keep: float = 0.0
    dither: str = ""
    scale: float = 0.0

    @property
    def has_momentum(self) -> bool:
        """Whether a momentum is kept."""
        return self.vote > 0 or self.keep > 0


def Signum(beta: float = 0.9) -> Rule:
    """Sign the momentum m <- beta m + (1 - beta) g (arXiv 1802.04434; with a majority vote 1810.05291)."""
    return Rule("signum", beta, beta)


def SignSGD() -> Rule:
    """Sign the gradient (arXiv 1802.04434)."""
    return Rule("signsgd")


def Lion(vote: float = 0.9, keep: float = 0.99) -> Rule:
    """Sign another mean of momentum and gradient than is kept (arXiv 2302.06675; with a majority vote 2404.00438)."""
    return Rule("lion", vote, keep)


_SIGNUM, _SIGNSGD = Signum(), SignSGD()


def Noisy(sigma: float, rule: Rule = _SIGNUM) -> Rule:
    """Add noise of standard deviation `sigma`, nearly normal, to what `rule` signs (arXiv 1906.01736)."""
    return rule._replace(name=f"noisy {rule.name}", dither="normal", scale=sigma)


def Stochastic(scale: float, rule: Rule = _SIGNSGD) -> Rule:
    """Let u of `rule` be positive with probability 1/2 + u / (2 scale), cut to [0, 1] (arXiv 1905.12938)."""
    return rule._replace(name=f"stochastic {rule.name}", dither="uniform", scale=scale)


def check_rule(rule: Rule) -> None:
    """Raise a ValueError if `rule` is none, or one of its numbers is out of range."""
    if not isinstance(rule, Rule):
        raise ValueError(f"rule: must be a Rule, such as mpisign.Signum(0.9), got {rule!r}")
    for name, beta in (("vote", rule.vote), ("keep", rule.keep)):
        if not 0 <= beta < 1:
            raise ValueError(f"rule: {name} must be in [0, 1), got {beta}")
    if rule.has_momentum and rule.keep < SMALLEST_BETA:
        raise ValueError(f"rule: keep must be at least {SMALLEST_BETA} where there is a momentum, got {rule.keep}")
    if rule.dither not in DITHERS:
        raise ValueError(f"rule: unknown dither {rule.dither!r}, choose from {', '.join(map(repr, DITHERS))}")
    if not 0 <= rule.scale <= LARGEST_SCALE:
        raise ValueError(f"rule: scale must be in [0, {LARGEST_SCALE:g}], got {rule.scale}")


def dither_key(seed: int, rank: int, bucket: int, step: int) -> int:
    """Return the 64 bits that seed what one rank throws for a bucket in a step, as `ties.coin_key` does for all."""
    key = mix(seed & MASK)
    for number in (rank, bucket, step):
        key = mix((key + number) & MASK)
    return key
