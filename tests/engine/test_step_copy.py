"""What is copied for XLA, and what is traced again."""

import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.engine.test_step_traces import ahead, engines, same, state
from tests.toys import Line, make_step, rows


class Nested(keras.Model):
    """Random numbers in a branch, in a loop, in a function and in a recomputed layer."""

    def __init__(self):
        super().__init__()
        self.w = self.add_weight(shape=(), initializer="ones")
        self.table = tf.constant([1.0, 2.0, 3.0, 4.0] * 100)

        @tf.function
        def noise(x, seed):
            return x + tf.random.stateless_normal(tf.shape(x), seed)

        self.noise = noise

    def call(self, batch, training=False):
        x = batch["x"] * self.w
        if not training:
            return {"x": x}
        step = tf.cast(tfloss.current_step(), tf.int32)
        seed = tf.stack([step, 7])
        shift = tf.cond(
            step % 2 == 0,
            lambda: tf.random.stateless_uniform([4], seed),
            lambda: self.noise(self.table[:4], seed),
        )

        def body(i, y):
            half = tf.random.stateless_uniform(tf.shape(y), seed + i, dtype=tf.float16)
            return i + 1, y + tf.cast(half, tf.float32)

        _, shift = tf.while_loop(lambda i, _: i < 3, body, [0, shift], maximum_iterations=3)
        x = self.noise(x * shift, seed)
        back = tf.recompute_grad(lambda x: self.noise(tf.sin(x), seed + 9))
        number = tf.random.stateless_uniform([], seed, 0, 9, tf.int32)
        return {"error": tf.reduce_mean(back(x) ** 2), "number": tf.cast(number, tf.float32) + x[0]}


def test_random_numbers_in_nested_functions_are_those_of_the_graph():
    found = {}
    for kind in ("graph", "copied"):
        data = rows(np.linspace(0.1, 1.0, 32).astype(np.float32), 4)
        step, iterator = make_step(Nested, data, optimizer=lambda: keras.optimizers.SGD(0.01))
        loop, graph = engines(step, iterator)
        engine, source = (graph, iterator) if kind == "graph" else (loop, ahead(iterator))
        done, found[kind] = 0, []
        while done < 16:
            logs = engine.run(source, 16 - done)
            done += logs.steps
            found[kind].append(logs.rows())
    one, other = (np.concatenate(found[kind]) for kind in ("graph", "copied"))
    np.testing.assert_allclose(other, one, rtol=2e-5)


class Two(keras.Model):
    traced = 0

    def __init__(self):
        super().__init__()
        self.a = keras.layers.Dense(1)
        self.b = keras.layers.Dense(1)

    def call(self, batch, training=False):
        Two.traced += training
        x = batch["x"][:, tf.newaxis]
        return {"a": tf.reduce_mean(self.a(x) ** 2), "b": tf.reduce_mean(self.b(x) ** 2)}


def test_a_guard_in_a_branch_of_the_step_is_left_out():
    """A group that is updated every second step makes branches; XLA has no Python in them."""
    found = []
    for shared in (True, False):
        keras.utils.set_random_seed(0)

        def optimizer():
            one = tfloss.Group(keras.optimizers.SGD(0.1), lambda model: model.a, every=2)
            return {"a": one, "b": (keras.optimizers.SGD(0.1), lambda model: model.b)}

        step, iterator = make_step(Two, rows([1.0, 2.0, 3.0, 4.0], 2), optimizer=optimizer)
        loop, _ = engines(step, iterator, shared=shared)
        Two.traced = 0
        loop.run(ahead(iterator), 5)
        assert Two.traced == (0 if shared else 2)  # once for each branch
        found.append(state(step))
    same(*found)


def gradient_of_slice(step, y):
    """A two-stage detector slices and pads: its shapes are static, some begins are computed."""
    first = tf.slice(y, [tf.cast(step % 3, tf.int32)], [2])
    last = tf.slice(y, [1], [tf.shape(y)[0] - 1])
    return tf.reduce_sum(first**2 * last[:2]) + tf.reduce_sum(tf.pad(last, [[tf.size(first), 1]]))


def gradient_of_slice_in_a_function(step, y):
    @tf.function(autograph=False)
    def sliced(y, begin):
        return tf.slice(tf.pad(y, [[tf.size(begin), 0]]), begin, [2])

    return tf.reduce_sum(sliced(y, [tf.cast(step % 3, tf.int32)]) ** 2)


def gradient_of_slice_in_a_loop(step, y):
    def body(i, total):
        return i + 1, total + tf.reduce_sum(tf.slice(y, [i], [2]) ** 2 * total)

    return tf.while_loop(lambda i, _: i < 3, body, [0, 0.1], maximum_iterations=3)[1]


def gradient_of_loop(step, y):
    def body(i, y):
        return i + 1, tf.sin(y) * tf.reduce_mean(y)

    return tf.reduce_mean(tf.while_loop(lambda i, _: i < 3, body, [0, y], maximum_iterations=3)[1])


def branch(step, y):
    return tf.cond(
        step % 2 == 0, lambda: y + tf.stop_gradient(tf.reduce_mean(tf.sin(y))), lambda: y
    )


def gradient_of_branch(step, y):
    """A graph keeps what a branch computed in optionals, which XLA doesn't know."""
    return tf.cond(step % 2 == 0, lambda: tf.reduce_mean(y**2), lambda: tf.reduce_mean(y))


def gradient_of_lengths_in_a_loop(step, y):
    """A graph keeps the length of the list, which XLA must know before it runs."""
    return tf.reduce_mean(tf.scan(lambda a, x: tf.sin(a) + x, y))


@pytest.mark.parametrize(
    ("function", "copied"),
    [
        (gradient_of_slice, True),
        pytest.param(gradient_of_slice_in_a_function, True, marks=pytest.mark.slow),
        pytest.param(gradient_of_slice_in_a_loop, True, marks=pytest.mark.slow),
        (gradient_of_loop, True),
        pytest.param(branch, True, marks=pytest.mark.slow),
        (gradient_of_branch, False),
        pytest.param(gradient_of_lengths_in_a_loop, False, marks=pytest.mark.slow),
    ],
)
def test_what_is_copied_has_the_bits_of_a_trace(function, copied):
    traced = []

    def report(model, batch, y):
        traced.append(1)
        return tf.reduce_mean(function(tfloss.current_step(), y))

    found = []
    for shared in (True, False):
        step, iterator = make_step(lambda: Line(report), rows(np.linspace(-1, 1, 12), 4))
        loop, _ = engines(step, iterator, shared=shared)
        traced.clear()
        blocks = ahead(iterator)
        while step.counter.numpy() < 6:
            loop.run(blocks, 6 - int(step.counter.numpy()))
        assert not shared or len(traced) == (not copied)
        found.append(state(step))
    same(*found)


class Words(keras.Model):
    traced = 0

    def __init__(self):
        super().__init__()
        self.table = keras.layers.Embedding(5, 3)

    def call(self, batch, training=False):
        Words.traced += training
        return tf.reduce_mean(self.table(tf.cast(batch["x"], tf.int32)) ** 2)


def test_sparse_gradients_that_are_merged_in_a_graph_are_traced_again():
    """XLA has no shapes for the rows that are left."""
    found = []
    for shared in (True, False):
        keras.utils.set_random_seed(0)
        step, iterator = make_step(
            Words, rows([1.0, 1.0, 3.0, 4.0], 2), optimizer=lambda: keras.optimizers.Adagrad(0.1)
        )
        Words.traced = 0
        loop, _ = engines(step, iterator, shared=shared)
        blocks = ahead(iterator)
        while step.counter.numpy() < 6:
            loop.run(blocks, 6 - int(step.counter.numpy()))
        assert Words.traced == 2
        found.append(state(step))
    same(*found)


@pytest.mark.slow
def test_a_copy_takes_a_part_of_the_time_of_the_trace():
    """In time of this thread, so that other processes don't count."""

    class Many(keras.Model):
        def __init__(self):
            super().__init__()
            self.net = keras.Sequential([keras.layers.Dense(4) for _ in range(80)])

        def call(self, batch, training=False):
            return tf.reduce_mean(self.net(batch["x"][:, tf.newaxis]) ** 2)

    def seconds(function):
        began = time.thread_time()
        function()
        return time.thread_time() - began

    step, iterator = make_step(
        Many, rows([1.0] * 8, 4), optimizer=lambda: keras.optimizers.Adam(0.01)
    )
    made = []
    first = seconds(lambda: made.extend(engines(step, iterator)))
    block = {"x": tf.ones([50, 4])}
    assert seconds(lambda: made[0].compiler(block)) < 0.5 * first
