"""Who votes and who does not, made up for tests: presence by part, abstention by coordinate, and the true votes."""

import functools

import numpy as np
import reference

from mpisign.coding.sizes import BLOCK, words_for
from mpisign.voting import roll

SIZES = (1, 0, 62, 1, 64, 130, 0, 5, BLOCK * 64, 3, 700, 64, 0)  # most do not end where a word does
W, EDGES = words_for(sum(SIZES)), roll.edges_of(SIZES)
SEED, STEP = 3, 5


def attendances(P):
    """Return who is absent on which part, bool (P, parts), in several cases."""
    rng = np.random.default_rng(P)
    alone = np.ones((P, len(SIZES)), bool)
    alone[P // 2] = False
    joined = np.zeros_like(alone)
    joined[P - 1] = True
    few = rng.random(alone.shape) < 0.2
    many = rng.random(alone.shape) < 0.7
    many[:, ::5] = True  # nobody
    return [np.zeros_like(alone), np.ones_like(alone), alone, joined, few, many]


def ballots(P):
    """Return the words of all ranks and where they abstain, uint64 (2, P, W)."""
    rng = np.random.default_rng([P, 1])
    bits = rng.random((2, P, 64 * W)) < 0.5
    bits[:, :, 500:900] = bits[0, 0, 500:900]  # all alike: on some nobody votes
    bits[1, :, 900:] &= rng.random(64 * W - 900) < 0.3
    bits[:, :, sum(SIZES) :] = False  # as in all words
    return np.packbits(bits, axis=-1, bitorder="little").view("<u8")


@functools.cache
def true_votes(P, rule, *, abstain, sizes):
    """Return the votes on `ballots` in each of the attendances, or in one without sizes."""
    words, abstains = ballots(P)
    return [
        reference.majority(words, rule, SEED, STEP, absent=absent, sizes=sizes, abstains=abstains if abstain else None)
        for absent in (attendances(P) if sizes else [None])
    ]


def take_votes(plan, P, rank, shown=np.asarray):
    """Vote on `ballots` in each of the attendances that the plan has sizes for, one after the other; yield the results.

    The plan's buffers are uint64 when `shown`. What it says beside the vote is checked.
    """
    words, abstains = ballots(P)
    for turn, absent in enumerate(attendances(P) if plan.roll else [None]):
        mine = words[rank] if absent is None else words[rank] & ~roll.mask(absent[rank], EDGES, first=0, W=W)
        shown(plan.words)[:] = mine
        if plan.abstains is not None:
            shown(plan.abstains)[:] = abstains[rank]
        if plan.roll:
            plan.roll.write(turn=turn, agreed=turn + rank, faults=-rank, absent=absent[rank])
        yield shown(plan.vote(STEP, None)).copy()
        assert np.array_equal(shown(plan.words), mine)
        assert plan.abstains is None or np.array_equal(shown(plan.abstains), abstains[rank])
        assert np.array_equal(plan.nobody, [] if absent is None else absent.all(axis=0))
        if plan.roll:
            assert np.array_equal(plan.roll.absent, absent)
            assert plan.roll.turns.tolist() == [turn] * P
            assert plan.roll.agreed.tolist() == [turn + other for other in range(P)]
            assert plan.roll.faults.tolist() == [-other for other in range(P)]
