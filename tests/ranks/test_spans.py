"""Spans: what is added up, and what a time line keeps of it."""

import threading

import pytest

from mpisign.ranks import clock as spans


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved."""
    now = [100.0]
    monkeypatch.setattr(spans.time, "perf_counter", lambda: now[0])
    return now


def spend(span, clock, seconds):
    with span:
        clock[0] += seconds


def test_seconds_add_up_by_name_until_they_are_taken(clock):
    kept = spans.Spans()
    for name, seconds in (("pack", 1.0), ("vote", 2.0), ("pack", 4.0)):
        spend(kept(name), clock, seconds)
    assert kept.take() == {"pack": 5.0, "vote": 2.0}
    assert kept.take() == {}
    assert kept.most == 3
    spend(kept("pack"), clock, 8.0)
    assert kept.take() == {"pack": 8.0}
    assert kept.most == 3


def test_a_block_that_raises_is_counted(clock):
    kept = spans.Spans()

    def fail():
        with kept("pack"):
            clock[0] += 3.0
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert kept.take() == {"pack": 3.0}


def test_a_time_line_is_kept_only_when_asked_for(clock):
    plain, traced = spans.Spans(), spans.Spans(traced=True)
    for kept in (plain, traced):
        spend(kept("pack"), clock, 1.0)
        kept.mark("exchange", "gloo", 50.0, 2.0)
        assert kept.take() == {"pack": 1.0}
    assert plain.take_events() == []
    assert traced.take_events() == [("training", "pack", 101.0, 1.0), ("exchange", "gloo", 50.0, 2.0)]
    assert traced.take_events() == []


def test_each_thread_has_its_row_and_spans_may_nest(clock):
    kept = spans.Spans(traced=True)
    with kept("backward"):
        vote = threading.Thread(target=lambda: spend(kept("pack"), clock, 1.0))
        vote.start()
        vote.join()
        spend(kept("wait"), clock, 2.0)
    assert kept.take_events() == [
        ("vote", "pack", 100.0, 1.0),
        ("training", "wait", 101.0, 2.0),
        ("training", "backward", 100.0, 3.0),
    ]
