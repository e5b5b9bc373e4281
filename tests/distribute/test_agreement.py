"""One worker agrees with itself; several are in tests/workers."""

import concurrent.futures
import time

import numpy as np
import pytest
import tensorflow as tf

from tests.distribute.channels import channels, lose
from tfloss.distribute.agreement import Agreement
from tfloss.distribute.lost_workers import LostWorkers
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


class _Two(Agreement):
    """One of two workers, whose values are exchanged by threads that wait for each other."""

    def __init__(self, index, channel):
        super().__init__(tf.distribute.get_strategy())
        self.index, self.workers, self.chief = index, 2, index == 0
        self._channel, self._lost = channel, LostWorkers(channel, lambda reason: None)


class _Summed(_Two):
    """The same without a control channel: by sums, as TensorFlow makes them."""

    def __init__(self, index, channel):
        super().__init__(index, channel)
        self._channel, self._sums = None, channel

    def _all_reduce_sum(self, values):
        return np.sum(self._sums.gather("a sum", list(map(float, values))), 0)


def _both(work, kind=_Two):
    """What `work(agreement)` gives each of two workers, or its error."""

    def call(index):
        try:
            return work(kind(index, made[index]))
        except WorkerError as error:
            return str(error)

    with channels(2) as made, concurrent.futures.ThreadPoolExecutor(2) as pool:
        return list(pool.map(call, range(2)))


@pytest.mark.parametrize("kind", [_Two, _Summed])
def test_flags_of_any_and_numbers_of_the_first(kind):
    def work(agreement):
        me = agreement.index
        flags, numbers = agreement.agree([me == 1, False], [me + 0.1, 7])
        values = agreement.broadcast({"a": me + 2.0})
        return flags, numbers, values, agreement.gather("names", f"worker {me}")

    assert (
        _both(work, kind) == [([True, False], [0.1, 7.0], {"a": 2.0}, ["worker 0", "worker 1"])] * 2
    )


@pytest.mark.parametrize("kind", [_Two, _Summed])
def test_differences_are_named_on_all_workers(kind):
    def work(agreement):
        me = agreement.index
        agreement.require_equal({"same": [1], "nan": float("nan")}, "Advice.")
        values = {"step": {"clip": 1.0 if me else None, "same": True}, "long": "x" * 500 + str(me)}
        agreement.require_equal({**values, **({"only": 1} if me else {})}, "Start again.")

    for message in _both(work, kind):
        assert message.startswith(
            'The workers differ: step/clip is null on worker 0, 1 on worker 1; long is "xxx'
        )
        assert message.endswith("; only is absent on worker 0, 1 on worker 1. Start again.")
        assert len(message) < 700


def test_another_number_of_flags_is_another_place():
    found = _both(lambda agreement: agreement.agree([True] * (1 + agreement.index), [], "hooks"))
    for message in found:
        assert "hooks (1 flags, 0 numbers)" in message and "hooks (2 flags, 0 numbers)" in message


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
        "WorkerError: Another worker failed to save a checkpoint. Worker 0 (host0:2222): OSError: "
        "the disk is full",
    ]


def test_a_single_worker_just_calls_the_function():
    alone = Agreement(tf.distribute.get_strategy())

    assert alone.run_on_all("save", lambda: 7) == 7
    with pytest.raises(OSError, match="full"):
        alone.run_on_all("save", _fail)


def test_an_error_of_a_collective_names_the_worker_that_is_gone():
    def work(agreement):
        if agreement.index == 1:
            return lose(agreement._channel)
        deadline = time.monotonic() + 30
        while not agreement._channel.failure() and time.monotonic() < deadline:
            time.sleep(0.01)
        own = ValueError("mine")
        error = agreement.report(tf.errors.UnavailableError(None, None, "gone"))
        return agreement.report(own) is own, type(error).__name__, str(error)

    own, name, message = _both(work)[0]
    assert own and name == "WorkerError"
    assert message.startswith("Worker 1 (host1:2222): it was lost: ")
    assert message.endswith("Start them again; they continue from the last checkpoint.")


def test_without_a_channel_the_error_is_explained():
    def work(agreement):
        agreement._lost = None
        lost, own = tf.errors.UnavailableError(None, None, "gone"), ValueError("mine")
        same = agreement.report(lost) is lost and agreement.report(own) is own
        return same, lost.__notes__, hasattr(own, "__notes__")

    for same, notes, explained in _both(work, _Summed):
        assert same and "another worker was lost" in notes[0] and not explained
