"""One worker agrees with itself; several are in tests/workers."""

import concurrent.futures
import threading
import time

import pytest
import tensorflow as tf

from tfloss.distribute.agreement import Agreement
from tfloss.distribute.strategy import is_chief, worker_position
from tfloss.errors import WorkerError


def test_a_single_worker_agrees_with_itself(replicas):
    for strategy in (replicas(1), replicas(2)):
        agreement = Agreement(strategy)
        assert agreement.chief and agreement.workers == 1
        assert agreement.agree([True, False], [3.0]) == ([True, False], [3.0])
        assert agreement.broadcast({"a": 1.0}) == {"a": 1.0}
        agreement.require_equal({"step": 3}, "advice")
        assert worker_position(strategy) == (0, 1) and is_chief(strategy)


def test_a_sum_over_one_worker_is_its_own():
    agreement = Agreement(tf.distribute.get_strategy())
    assert agreement.all_reduce_sum([1.5, 2.0]).tolist() == [1.5, 2.0]


class _Two(Agreement):
    """One of two workers, whose sums are made by threads that wait for each other."""

    def __init__(self, index, table, barrier):
        super().__init__(tf.distribute.get_strategy())
        self.index, self.workers, self.chief = index, 2, index == 0
        self._table, self._barrier = table, barrier

    def all_reduce_sum(self, values):
        self._table[self.index] = values
        self._barrier.wait(5)
        found = self._table[0] + self._table[1]
        self._barrier.wait(5)
        return found


def _both(work):
    """What `work(agreement)` gives each of two workers."""
    table, barrier = {}, threading.Barrier(2)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda index: work(_Two(index, table, barrier)), range(2)))


def _fail():
    raise OSError("the disk is full")


def test_no_worker_continues_before_all_are_done():
    ends = {}

    def work(agreement):
        def slow():
            time.sleep(0.3 if agreement.chief else 0.0)
            ends["chief" if agreement.chief else "other"] = time.monotonic()
            return agreement.index

        return agreement.run_on_all("save", slow), time.monotonic()

    (first, _), (second, left) = _both(work)

    assert (first, second) == (0, 1)
    assert left >= ends["chief"] > ends["other"]


def test_a_failure_on_one_worker_is_raised_on_all():
    def work(agreement):
        try:
            return agreement.run_on_all("save a checkpoint", _fail if agreement.chief else str)
        except (OSError, WorkerError) as error:
            return f"{type(error).__name__}: {error}"

    assert _both(work) == [
        "OSError: the disk is full",
        "WorkerError: Another worker failed to save a checkpoint; see its output.",
    ]


def test_a_single_worker_just_calls_the_function():
    alone = Agreement(tf.distribute.get_strategy())

    assert alone.run_on_all("save", lambda: 7) == 7
    with pytest.raises(OSError, match="full"):
        alone.run_on_all("save", _fail)


def test_a_lost_worker_is_explained():
    def work(agreement):
        lost, own = tf.errors.UnavailableError(None, None, "gone"), ValueError("mine")
        agreement.explain_lost_worker(lost)
        agreement.explain_lost_worker(own)
        return lost.__notes__, hasattr(own, "__notes__")

    for notes, explained in _both(work):
        assert "another worker was lost" in notes[0] and not explained
