from mpi4py import MPI

from mpisign.bench import rounds as counting
from mpisign.report import rows
from mpisign.report.records import Run


def rounds(monkeypatch, widths, seconds=0.0, **config):
    """Count with intervals of such widths, of which each is asked for after so many seconds."""
    clock, wide = iter(seconds * i for i in range(1000)), iter(widths)
    monkeypatch.setattr(rows, "widest", lambda run, size: next(wide))
    monkeypatch.setattr(counting.time, "monotonic", lambda: next(clock))
    config = {"warmup": 2, "iterations": 20, "sizes": (), "until": None, "time_cap": 100.0} | config
    run = Run({"config": config})
    counted = list(counting.Rounds(MPI.COMM_SELF, run))
    assert counted == list(range(-2, len(counted) - 2))
    assert list(wide) == []
    return len(counted) - 2


def test_without_until_there_are_as_many_rounds_as_asked(monkeypatch):
    assert rounds(monkeypatch, []) == 20


def test_rounds_go_on_by_a_tenth_until_the_intervals_are_narrow(monkeypatch):
    assert rounds(monkeypatch, [0.05], until=0.05) == 20
    assert rounds(monkeypatch, [0.3, 0.2, 0.05], until=0.05) == 20 + 2 + 2
    assert rounds(monkeypatch, [0.3] * 6 + [0.01], until=0.05) == 20 + 2 * 5 + 3


def test_rounds_end_when_time_is_up(monkeypatch):
    assert rounds(monkeypatch, [0.3, 0.3], seconds=40, until=0.05) == 20 + 2 + 2
    assert rounds(monkeypatch, [0.3], seconds=40, until=0.05, sizes=(4, 8)) == 20 + 2
