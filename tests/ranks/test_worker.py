"""The thread that exchanges: it ends with its owner, wherever that is collected."""

import pytest

from mpisign.ranks.worker import Worker


def test_jobs_are_done_in_order_until_one_fails():
    worker, done = Worker(), []

    def fail():
        raise ValueError("no words")

    for job in (lambda: done.append(1), fail, lambda: done.append(2)):
        worker.submit(job)
    for _ in range(2):
        with pytest.raises(ValueError, match="no words"):
            worker.wait()
    worker.close()
    assert done == [1]


def test_its_own_thread_may_close_it():
    """A state is collected where the last reference goes, or the collector happens to run."""
    worker = Worker()
    worker.submit(worker.close)
    worker.wait()
