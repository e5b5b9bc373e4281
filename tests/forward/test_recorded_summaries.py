"""Recorded tensors become summaries on the host, in order; drawings are drawn there."""

import numpy as np
import pytest
import tensorflow as tf

from tfloss.forward.recorded_summaries import RecordedSummary, draw_images, summaries_on_host


def _drawing(name, function, more):
    spec = tf.constant(0.0)
    return RecordedSummary(name, "drawing", spec, options={"draw": function, "more": more})


def test_the_tensors_of_a_drawing_are_drawn_together_under_its_name():
    def bars(heights, width):
        return np.zeros([1, len(heights), int(width), 3], np.uint8)

    recorded = [
        RecordedSummary("h", "histogram", tf.constant([0.0]), options={"buckets": 3}),
        _drawing("a:b", bars, more=True),
        _drawing("a:b", bars, more=False),
        RecordedSummary("t", "text", tf.constant("")),
    ]
    values = [tf.constant([1.0]), tf.zeros([2]), tf.constant(4.0), tf.constant("x")]
    found = summaries_on_host(recorded, values)
    assert [(one.name, one.kind) for one in found] == [
        ("h", "histogram"),
        ("a:b", "image"),
        ("t", "text"),
    ]
    assert found[0].options == {"buckets": 3}
    assert found[1].value.shape == (1, 2, 4, 3)
    assert found[2].value == b"x"


def test_a_drawing_that_fails_is_left_out_with_one_warning():
    def fails(array):
        raise KeyError("no such color")

    recorded = [_drawing("fails once", fails, more=False)]
    with pytest.warns(UserWarning, match="'fails once' can't be drawn.*Training continues") as told:
        for _ in range(2):
            assert summaries_on_host(recorded, [tf.zeros([2])]) == ()
    assert len(told) == 1


def test_images_must_have_four_dimensions():
    with pytest.warns(UserWarning, match=r"returned shape \(2,\)"):
        assert draw_images("flat", lambda array: array, np.zeros([2])) is None
