"""A forward context belongs to one thread and one forward pass."""

import threading

import keras
import pytest
import tensorflow as tf

from tfloss import summary
from tfloss.errors import SummaryError
from tfloss.forward.context import current_context, current_step, forward_context

STEP = tf.constant(7, tf.int64)


def test_contexts_nest_and_end():
    assert current_context() is None and current_step().numpy() == 0
    with forward_context(STEP, recording=True) as outer:
        assert current_context() is outer and current_step().numpy() == 7
        with forward_context(STEP + 1, recording=False) as inner:
            assert current_context() is inner and current_step().numpy() == 8
        assert current_context() is outer
    assert current_context() is None


def test_another_thread_does_not_see_the_context():
    seen = []
    with forward_context(STEP, recording=True):
        thread = threading.Thread(target=lambda: seen.append(current_context()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_losses_and_summaries_are_collected_with_their_names():
    layer = keras.layers.Dense(1, activity_regularizer="l2", name="dense")
    with forward_context(STEP, recording=True) as context:
        layer(tf.ones([2, 1]))
        with summary.scope("outer"), summary.scope("inner"):
            summary.scalar("value", 1.0)
    assert [(one.layer.name, one.name) for one in context.losses] == [("dense", None)]
    assert list(context.summaries) == ["outer/inner/value"]
    assert not context.dropped


def test_a_context_that_does_not_record_drops_summaries_and_knows_it():
    with forward_context(STEP, recording=False) as context:
        assert not context.dropped
        summary.histogram("values", [1.0])
    assert context.summaries == {} and context.dropped


def test_a_recorded_drawing_is_not_dropped():
    with forward_context(STEP, recording=True) as context:
        summary.draw("drawing", lambda *arrays: arrays[0], tf.zeros([1]), tf.zeros([1]))
    assert [one.name for one in context.summaries.values()] == ["drawing", "drawing"]
    assert not context.dropped


def test_a_silent_context_reports_nothing_and_keeps_the_step():
    layer = keras.layers.Dense(1, activity_regularizer="l2")
    with forward_context(STEP, recording=True) as context:
        with context.silent():
            layer(tf.ones([2, 1]))
            summary.scalar("value", 1.0)
            assert current_step().numpy() == 7
    assert context.losses == [] and context.summaries == {}
    assert len(layer.losses) == 1  # Keras got it


def test_a_backward_pass_sees_the_step_again():
    with forward_context(STEP, recording=True) as context:
        pass
    with context.backward():
        assert current_context() is context and not context.collecting
    assert current_context() is None and context.collecting


def test_a_name_can_be_used_once():
    with forward_context(STEP, recording=False):
        summary.scalar("value", 1.0)
        with pytest.raises(SummaryError, match="'value' is recorded twice in one step"):
            summary.scalar("value", 2.0)
