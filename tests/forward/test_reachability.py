"""What a gradient can reach."""

import tensorflow as tf

from tfloss.forward.reachability import depends_on, gradient_reaches, reached_tensors


def test_a_gradient_passes_floats_and_stops_where_it_is_stopped():
    w, other = tf.Variable(1.0), tf.Variable(1.0)
    found = []

    @tf.function
    def trace():
        reaches = gradient_reaches([w])
        found.extend(
            reaches(one)
            for one in (
                2.0 * w,
                tf.cond(w > 0, lambda: w + 1.0, lambda: w),
                tf.stop_gradient(w),
                tf.cast(tf.cast(w, tf.int32), tf.float32),
                2.0 * other,
            )
        )

    trace()
    assert found == [True, True, False, False, False]


def test_all_targets_before_the_first_are_found():
    found = []

    @tf.function
    def trace(x):
        first, second = x * 2.0, x * 3.0
        behind = first + 1.0
        names = {first.name: "first", second.name: "second", behind.name: "behind"}
        found.extend(sorted(names[one] for one in reached_tensors(behind * second, names)))

    trace(tf.constant(1.0))
    assert found == ["behind", "second"]


def test_what_depends_on_the_step_or_a_variable():
    w, found = tf.Variable(1.0), []

    @tf.function
    def trace(step, other):
        values = [tf.cast(step, tf.float32) * 2.0, tf.stop_gradient(w), other, tf.constant(1.0)]
        found.extend(depends_on(one, step) for one in [*values, tf.random.uniform([])])

    trace(tf.constant(1, tf.int64), tf.constant(1.0))
    assert found == [True, True, False, False, True]
