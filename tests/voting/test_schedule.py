"""Both schedules take all votes in the order of the buckets; what fails stays failed."""

import threading

import pytest
import torch

from mpisign.voting.bucket import HeldBucket
from mpisign.voting.schedule import SCHEDULES, Scheduler, check_schedule


@pytest.fixture
def scheduler():
    scheduler = Scheduler()
    yield scheduler
    scheduler.close()


def buckets(count):
    return [HeldBucket(i, torch.zeros(1), [], i == count - 1) for i in range(count)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_votes_are_taken_in_order_in_a_thread_and_waited_for(scheduler, schedule):
    taken = []
    for step in range(3):
        for bucket in buckets(4):
            vote = lambda at=(step, bucket.number): taken.append((*at, threading.current_thread().name))  # noqa: E731
            scheduler.submit(bucket, vote, schedule)
        assert [at[:2] for at in taken] == [(done, number) for done in range(step + 1) for number in range(4)]
    assert threading.current_thread().name not in {thread for *_, thread in taken}


def test_overlap_starts_at_once_and_serial_after_the_last_bucket(scheduler):
    first, last = buckets(2)
    started = threading.Event()
    scheduler.submit(first, started.set, "serial")
    assert not started.wait(0.2)
    scheduler.submit(last, lambda: None, "serial")
    assert started.is_set()
    started.clear()
    scheduler.submit(first, started.set, "overlap")
    assert started.wait(60)
    scheduler.submit(last, lambda: None, "overlap")


def test_what_a_backward_that_raised_has_left_is_forgotten(scheduler):
    taken, (first, last) = [], buckets(2)
    scheduler.submit(first, lambda: taken.append("left over"), "serial")
    scheduler.submit(first, lambda: taken.append("first"), "serial")
    scheduler.submit(last, lambda: taken.append("last"), "serial")
    assert taken == ["first", "last"]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_after_a_vote_that_failed_none_is_taken(scheduler, schedule):
    taken, (first, last) = [], buckets(2)

    def broken():
        raise ArithmeticError("no vote today")

    scheduler.submit(first, broken, schedule)
    with pytest.raises(ArithmeticError, match="no vote today"):
        scheduler.submit(last, lambda: taken.append("after"), schedule)
    scheduler.submit(first, lambda: taken.append("next step"), schedule)
    with pytest.raises(ArithmeticError, match="no vote today"):
        scheduler.submit(last, lambda: taken.append("next step"), schedule)
    assert taken == []


def test_an_unknown_schedule_is_named():
    with pytest.raises(ValueError, match="schedule: unknown name 'never', choose from serial, overlap"):
        check_schedule("never")
