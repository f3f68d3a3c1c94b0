"""What a mean is held to: no right sum is accused, in any order, and faults are seen on many ranks too."""

import numpy as np
import pytest
import torch

from mpisign.methods.means import share_of, wrong_means
from mpisign.methods.table import METHODS

TYPES = {"mpi": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def one_by_one(rows):
    total = rows[0].clone()
    for row in rows[1:]:
        total = total + row
    return total


def ring(rows):
    """Sum each of P parts from another rank on."""
    P, n = rows.shape
    edges = [part * n // P for part in range(P + 1)]
    return torch.cat([one_by_one(rows[:, edges[i] : edges[i + 1]].roll(-i, 0)) for i in range(P)])


def neighbours(rows):
    while len(rows) > 1:
        rows = [sum(rows[i + 1 : i + 2], rows[i]) for i in range(0, len(rows), 2)]
    return rows[0]


def halves(rows):
    while len(rows) > 1:
        half = (len(rows) + 1) // 2
        rows = [sum(rows[i + half : i + half + 1], rows[i]) for i in range(half)]
    return rows[0]


ORDERS = (one_by_one, ring, neighbours, halves)
NOISE = np.random.default_rng(0)


def normal(*shape):
    return NOISE.standard_normal(shape)


def which(P, condition):
    return np.where([condition(rank) for rank in range(P)], 1.0, -1.0)[:, None]


GRADIENTS = {
    "independent": normal,
    "alike": lambda P, n: np.tile(normal(n), (P, 1)),
    "nearly alike": lambda P, n: normal(n) * (1 + 1e-2 * normal(P, n)),
    "a part alike": lambda P, n: np.where(NOISE.random(n) < 0.1, normal(n), 0.3 * normal(P, n)),
    "heavy tails": lambda P, n: np.clip(NOISE.standard_t(1.5, (P, n)), -500, 500),
    "of many sizes": lambda P, n: normal(P, n) * np.exp(1.5 * normal(n)),
    "one rank large": lambda P, n: normal(P, n) * (50.5 + 49.5 * which(P, lambda rank: rank == P // 2)),
    "half inverted": lambda P, n: normal(n) * which(P, lambda rank: rank < P // 2) * (1 + 0.05 * normal(P, n)),
    "every other inverted": lambda P, n: normal(n) * which(P, lambda rank: rank % 2) * (1 + 0.05 * normal(P, n)),
    "two groups": lambda P, n: np.repeat(normal(2, n), (P // 2, P - P // 2), axis=0),
    "zeros": lambda P, n: np.zeros((P, n)),
    "mostly zeros": lambda P, n: normal(P, n) * (NOISE.random((P, n)) < 0.05),
    "equal numbers": lambda P, n: np.full((P, n), 1 + NOISE.random()),
    "equal numbers on each rank": lambda P, n: np.tile(normal(P, 1), (1, n)),
    "all positive": lambda P, n: NOISE.random((P, n)),
    "near fp16's underflow": lambda P, n: 3e-7 * normal(P, n),
    "below fp32's": lambda P, n: 1e-40 * normal(P, n),
}


def wrong_in(result, rows, name):
    return wrong_means(result.astype(np.float32), share_of(rows), P=len(rows), truth=METHODS[name].truth)


@pytest.mark.parametrize("gradients", GRADIENTS)
@pytest.mark.parametrize("P", [1, 2, 3, 33])
def test_a_right_mean_is_not_accused(P, gradients):
    for n in (0, 1, 65, 500):
        rows = GRADIENTS[gradients](P, n).astype(np.float32)
        for name, dtype in TYPES.items():
            before, sent = (torch.from_numpy(part).to(dtype) for part in (rows / np.float32(P), rows))
            for order in ORDERS:
                assert wrong_in(order(before).float().numpy(), rows, name) == 0, (n, name, order.__name__)
                assert wrong_in((order(sent) / P).float().numpy(), rows, name) == 0, (n, name, order.__name__)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("of_ranks", [(np.nan, 1), (np.inf, 1), (-np.inf, -1), (np.inf, np.inf), (np.inf, -np.inf)])
def test_what_is_not_finite_has_to_be_so_in_the_result(of_ranks, name):
    rows = np.tile(normal(100).astype(np.float32), (3, 1))
    rows[:2, 5] = of_ranks
    with np.errstate(invalid="ignore"):
        right = rows.mean(0)
    assert wrong_in(right, rows, name) == 0
    for other in {0.0, 1.0, np.inf, -np.inf, np.nan} - {right[5]}:
        if not (np.isnan(other) and np.isnan(right[5])):
            faulty = right.copy()
            faulty[5] = other
            assert wrong_in(faulty, rows, name) == 1, other
    for other in (np.nan, np.inf):
        faulty = right.copy()
        faulty[6] = other
        assert wrong_in(faulty, rows, name) == 1, other


@pytest.mark.parametrize(("name", "size"), [("fp16", 7e4), ("mpi", 3e38), ("bf16", 3.39e38)])
def test_what_is_beyond_the_largest_number_may_be_infinite(name, size):
    rows = np.full((3, 100), 0.5, np.float32)
    rows[:, 7] = size
    sent = torch.from_numpy(rows).to(TYPES[name])
    right = (one_by_one(sent) / 3).float().numpy()
    assert np.isinf(right[7])
    assert wrong_in(right, rows, name) == 0
    right[8] = np.inf
    assert wrong_in(right, rows, name) == 1


FAULTS = {
    "0": lambda rows: 0 * rows[0],
    "half of the ranks left out": lambda rows: rows[: len(rows) // 2].sum(0) / len(rows),
    "divided twice": lambda rows: rows.mean(0) / len(rows),
    "not divided": lambda rows: rows.sum(0),
    "shifted": lambda rows: np.roll(rows.mean(0), 1),
}
# One rank is 1 / P of the mean: the probe of a run sees it on more ranks than these.
FEW = {
    "a rank left out": lambda rows: rows[1:].sum(0) / len(rows),
    "a rank counted twice": lambda rows: rows.mean(0) + rows[0] / len(rows),
}


@pytest.mark.parametrize(
    ("fault", "P"),
    [(fault, P) for fault in FAULTS for P in (2, 3, 512)] + [(fault, P) for fault in FEW for P in (2, 3, 64)],
)
@pytest.mark.parametrize("name", TYPES)
def test_a_fault_is_seen(name, fault, P):
    rows = normal(P, 4096).astype(np.float32)
    assert wrong_in((FAULTS | FEW)[fault](rows), rows, name) == 4096
