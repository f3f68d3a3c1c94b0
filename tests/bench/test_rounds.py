import math

import numpy as np
import pytest
from mpi4py import MPI

from mpisign.bench import rounds as counting
from mpisign.report import rows
from mpisign.report.records import Run
from mpisign.report.statistics import median_interval


def head(methods=2, block=1, **config):
    config = {"warmup": 2, "iterations": 20, "sizes": (), "until": None, "time_cap": 100.0} | config
    names = [str(i) for i in range(methods)]
    return {"config": config, "block": block, "methods": names, "kinds": dict.fromkeys(names, "rival")}


def rounds(monkeypatch, widths=(), seconds=0.0, **facts):
    """Count with intervals of such widths, of which each is asked for after so many seconds."""
    clock, wide = iter(seconds * i for i in range(10_000)), iter(widths)
    monkeypatch.setattr(rows, "widest", lambda run, size: next(wide))
    monkeypatch.setattr(counting.time, "monotonic", lambda: next(clock))
    counted = list(counting.Rounds(MPI.COMM_SELF, Run(head(**facts))))
    assert counted == list(range(-2, len(counted) - 2))
    assert list(wide) == []
    return len(counted) - 2


def test_there_are_as_many_rounds_as_asked(monkeypatch):
    assert rounds(monkeypatch) == 20
    assert rounds(monkeypatch, iterations=3) == 3
    assert rounds(monkeypatch, block=2, iterations=7) == 4


def test_rounds_go_on_by_a_tenth_until_the_intervals_are_narrow(monkeypatch):
    assert rounds(monkeypatch, [0.05], until=0.05) == 20
    assert rounds(monkeypatch, [0.3, 0.2, 0.05], until=0.05) == 20 + 2 + 2
    assert rounds(monkeypatch, [0.3] * 6 + [0.01], until=0.05) == 20 + 2 * 5 + 3
    assert rounds(monkeypatch, [math.inf] * 2 + [0.01], until=0.05, iterations=3) == 3 + 1 + 1


def test_rounds_end_when_time_is_up(monkeypatch):
    assert rounds(monkeypatch, [0.3, 0.3], seconds=40, until=0.05) == 20 + 2 + 2
    assert rounds(monkeypatch, [0.3], seconds=40, until=0.05, sizes=(4, 8)) == 20 + 2


@pytest.mark.parametrize(("seconds", "sizes", "done"), [
    (11.0, (), 10), (6.0, (), 11), (1.0, (), 10 + 9), (1.0, (4, 8), 10 + 3), (0.0, (), 1000),
])  # fmt: skip
def test_unasked_there_are_as_many_rounds_as_fit(monkeypatch, seconds, sizes, done):
    assert rounds(monkeypatch, seconds=seconds, sizes=sizes, iterations=None) == done


def test_unasked_there_are_enough_rounds_for_verdicts(monkeypatch):
    for methods, sizes in ((14, ()), (14, (4, 8))):
        facts = head(methods, sizes=sizes, iterations=None)
        enough = rows.enough_rounds(Run(facts))
        assert enough > counting.LEAST
        assert rounds(monkeypatch, seconds=99.0, methods=methods, sizes=sizes, iterations=None) == enough
        assert counting.fewest(Run(facts)) == enough


def test_intervals_that_were_looked_at_until_narrow_still_cover(monkeypatch):
    rng, missed = np.random.default_rng(0), 0
    run = Run(head(iterations=None, until=0.05, warmup=0))
    for _ in range(1000):
        ratios, taken = rng.lognormal(sigma=0.2, size=3000), 0

        def widest(run, size):
            nonlocal interval
            interval = median_interval(ratios[:taken], rows.together(run))  # noqa: B023
            return (interval.high - interval.low) / (2 * interval.median)

        monkeypatch.setattr(rows, "widest", widest)
        interval = None
        for i in counting.Rounds(MPI.COMM_SELF, run):
            taken = i + 1
        missed += not interval.low <= 1 <= interval.high
    assert missed <= 0.05 * 1000
