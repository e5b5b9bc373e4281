"""What a run is has one owner."""

import tensorflow as tf

from tfloss.distribute.agreement import Agreement
from tfloss.hooks import RunInfo
from tfloss.trainer.run_state import RunState


def state(counter=None):
    counter = tf.Variable(0, dtype=tf.int64) if counter is None else counter
    agreement = Agreement(tf.distribute.get_strategy())
    return RunState(counter, agreement, log_every=10, log_every_step=False, clock=lambda: 0.0)


def test_the_first_reason_to_stop_counts_until_the_next_call():
    run = state()
    run.stop("first")
    run.stop("second")
    assert run.stop_reason == "first"
    run.error = ValueError()
    run.begin(RunInfo(5, 20))
    assert (run.stop_reason, run.error, run.info.steps) == (None, None, 20)


def test_the_counter_says_how_many_steps_a_call_completed_that_did_not_return():
    counter = tf.Variable(7, dtype=tf.int64)
    run = state(counter)
    run.step = 4
    assert run.read_counter() == 3
    assert run.step == 7
    assert run.read_counter() == 0
