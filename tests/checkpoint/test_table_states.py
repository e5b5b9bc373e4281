"""A layer's own tables of words are checked: other ones than those trained with are refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tfloss.errors import CheckpointError


class Words(keras.Model):
    """Embeds words that it looks up in a static table of its own."""

    def __init__(self, make):
        super().__init__(name="m")
        self.table = make()
        self.rows = keras.layers.Embedding(8, 1, name="rows")

    def call(self, batch, training=False):
        found = self.rows(self.table.lookup(batch["x"]))
        return {"loss": tf.reduce_mean(found)} if training else found


def hashed(words, first=1):
    numbers = tf.range(first, first + len(words), dtype=tf.int64)
    keys = tf.lookup.KeyValueTensorInitializer(list(words), numbers)
    return lambda: tf.lookup.StaticHashTable(keys, 0)


def vocabulary(words, buckets=1):
    numbers = tf.range(len(words), dtype=tf.int64)
    keys = tf.lookup.KeyValueTensorInitializer(list(words), numbers) if words else None
    return lambda: tf.lookup.StaticVocabularyTable(keys, buckets)


DATA = tf.data.Dataset.from_tensors({"x": tf.constant(["a", "b", "c", "z"])}).repeat()


def trained(workdir, make, steps, strategy=None):
    with (strategy or tf.distribute.get_strategy()).scope():
        model, optimizer = Words(make), keras.optimizers.SGD(1.0)
    one = tfloss.Trainer(
        model, optimizer, workdir=workdir, jit=False, strategy=strategy, default_hooks=False
    )
    one.train(DATA, steps)
    one.save_checkpoint()
    return one


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (hashed("abc"), hashed("cba"), "other keys or values"),
        (hashed("abc"), hashed("abc", 2), "other keys or values"),
        (hashed("abc"), hashed("abcd"), "had 3 entries, here 4"),
        (vocabulary("abc"), vocabulary("acb"), "other keys or values"),
        (vocabulary("abc"), vocabulary("abc", 2), "had 4 entries, here 5"),
        (vocabulary("", 3), vocabulary("a", 2), "other keys or values"),
    ],
)
def test_another_static_table_is_refused(tmp_path, before, after, message):
    trained(tmp_path, before, 1)
    with pytest.raises(CheckpointError, match=f"m/table .the static table.*{message}"):
        trained(tmp_path, after, 2)
    for checkpoint in (tmp_path / "checkpoints").iterdir():
        other = Words(after)
        other({"x": tf.constant(["a"])})
        with pytest.raises(CheckpointError, match=message):
            tfloss.load_weights(other, checkpoint)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("make", [hashed("abc"), vocabulary("abc"), vocabulary("", 3)])
def test_the_same_static_table_is_resumed(tmp_path, replicas, make, count):
    """Each of 4 words has the gradient 1/4, so the rows fall by 1/4 a step, all by 1 in sum."""
    first = trained(tmp_path, make, 1, replicas(count)).model.rows.embeddings.numpy()
    second = trained(tmp_path, make, 2, replicas(count)).model.rows.embeddings.numpy()
    assert np.sum(first - second) == pytest.approx(1.0, abs=1e-6)
