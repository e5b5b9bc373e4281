import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.toys import rows
from tfloss.errors import ModelError
from tfloss.evaluation.kept_state import KeptState


def test_changes_last_from_call_to_call_and_for_nobody_else():
    total, outside = tf.Variable(1.0), tf.Variable(5.0)
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, 0)

    def count(x):
        key = tf.constant(["n"])
        table.insert(key, table.lookup(key) + 1)
        return tf.stack([total.assign_add(x), tf.cast(table.lookup(key)[0], tf.float32), outside])

    kept = KeptState(tf.function(count, reduce_retracing=True))
    for _ in range(2):
        kept.begin()
        assert kept(tf.constant(1.0)).numpy().tolist() == [2.0, 1.0, 5.0]
        assert kept(tf.constant(2.0)).numpy().tolist() == [4.0, 2.0, 5.0]
        assert total.numpy() == 1.0 and table.size() == 0


def test_the_state_is_restored_after_an_error():
    total = tf.Variable(1.0)

    def fail(x):
        with tf.control_dependencies([total.assign_add(1.0)]):
            tf.debugging.assert_less(x, 0.0)
        return x

    kept = KeptState(tf.function(fail, autograph=False))
    with pytest.raises(tf.errors.InvalidArgumentError):
        kept(tf.constant(1.0))
    assert total.numpy() == 1.0


def test_what_can_not_be_restored_is_refused_before_it_changes():
    queue = tf.queue.FIFOQueue(3, tf.float32, [[]])

    def put(x):
        queue.enqueue(x)
        return x

    with pytest.raises(ModelError, match="(?s)QueueEnqueueV2 .*test_kept_state.py.*in put"):
        KeptState(tf.function(put, autograph=False))(tf.constant(1.0))
    assert queue.size() == 0


class Counts(keras.Model):
    """Counts its calls in every way there is, in training and in inference."""

    def __init__(self):
        super().__init__(name="counts")
        self.w = self.add_weight(name="w", shape=(), initializer="ones")
        self.calls = self.add_weight(name="calls", shape=(), initializer="zeros", trainable=False)
        self.raw = tf.Variable(0.0, trainable=False)
        self.table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.float32, 0.0)
        self.dense = tf.lookup.experimental.DenseHashTable(
            tf.int64, tf.float32, 0.0, empty_key=-1, deleted_key=-2
        )
        self.generator = tf.random.Generator.from_seed(3)

    def call(self, batch, training=False):
        one = tf.constant([1], tf.int64)
        for table in (self.table, self.dense):
            table.insert(one, table.lookup(one) + 1.0)
        self.calls.assign_add(1.0)
        self.raw.assign_add(1.0)
        noise = self.generator.normal([]) + keras.random.normal([])
        y = self.w * batch["x"] + 0.0 * noise
        return tf.reduce_mean(y) if training else {"y": y}

    def counted(self):
        keys, dense = self.dense.export()
        return [
            self.calls.numpy(),
            self.raw.numpy(),
            self.table.lookup(tf.constant([1], tf.int64)).numpy()[0],
            float(tf.reduce_sum(tf.where(keys == 1, dense, 0.0))),
            self.generator.state.numpy().tolist(),
        ]


def trained(workdir=None, steps=3):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    trainer = tfloss.Trainer(
        Counts(), keras.optimizers.SGD(0.1), workdir=workdir, default_hooks=False, jit=False
    )
    trainer.train(rows(np.ones(8), 4), steps)
    return trainer


@pytest.mark.promise(44)
def test_evaluation_in_any_form_leaves_every_state_as_it_was():
    trainer = trained()
    before = trainer.model.counted()
    assert before[:4] == [3.0] * 4
    data = rows(np.ones(8), 4).take(3)
    mean = {"mean": tfloss.metric(keras.metrics.Mean(), lambda batch, y: y["y"])}
    for metrics, losses in ((mean, False), ({}, True), (mean, True)):
        trainer.evaluate(data, metrics, losses=losses)
        assert trainer.model.counted() == before
    drawn = keras.random.normal([3]).numpy()
    other = trained()
    np.testing.assert_array_equal(keras.random.normal([3]), drawn)
    assert other.model.counted() == before


@pytest.mark.promise(44)
def test_tables_are_resumed(tmp_path):
    trained(tmp_path).save_checkpoint()
    resumed = trained(tmp_path, steps=5)
    whole = trained(steps=5)
    assert resumed.model.counted() == whole.model.counted()
    assert resumed.model.counted()[:4] == [5.0] * 4


@pytest.mark.promise(44)
@pytest.mark.upstream
def test_upstream_weights_have_no_tables(tmp_path):
    model = Counts()
    model.built = True
    model({"x": tf.ones([1])})
    file = tmp_path / "m.weights.h5"
    model.save_weights(file)
    other = Counts()
    other.built = True
    other.load_weights(file)
    assert model.counted()[:4] == [1.0] * 4
    assert other.counted()[:4] == [1.0, 0.0, 0.0, 0.0]
