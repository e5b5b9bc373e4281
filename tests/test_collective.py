import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.toys import Line, make_step, run
from tfloss.collective import cross_replica_concat, global_mean, global_sum
from tfloss.engine import Engine
from tfloss.errors import LossError

# 16 examples; the valid ones are not the same number in any two quarters, and none in the last.
X = np.arange(1.0, 17.0, dtype=np.float32)
VALID = np.array([1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0], np.float32)


def _data(batch=16):
    data = tf.data.Dataset.from_tensor_slices({"x": X, "valid": VALID})
    return data.batch(batch, drop_remainder=True).repeat()


# Values and gradients, by hand


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_global_mean_divides_by_the_global_count(count, replicas):
    def report(m, b, y):
        return {"mean": global_mean(y, b["valid"]), "sum": global_sum(y, b["valid"])}

    train_step, found, _ = run(
        lambda: Line(report), _data(), strategy=replicas(count), loss_weights={"sum": 0.1}
    )
    total, number = float(X @ VALID), float(VALID.sum())
    assert found["losses/mean"] == pytest.approx(total / number)
    assert found["losses/sum"] == pytest.approx(total)
    gradient = total / number + 0.1 * total
    assert train_step.model.w.numpy() == pytest.approx(1 - 0.1 * gradient)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("jit", [False, True])
def test_no_valid_element_anywhere_is_zero_with_zero_gradient(count, jit, replicas):
    def report(m, b, y):
        bad = y + np.nan
        return {"off": global_mean(bad, tf.zeros_like(y)), "on": global_mean(y)}

    train_step, found, _ = run(lambda: Line(report), _data(), strategy=replicas(count), jit=jit)
    assert found["losses/off"] == 0.0
    assert train_step.model.w.numpy() == pytest.approx(1 - 0.1 * X.mean())


def test_weights_broadcast_and_half_precision_is_summed_in_float32():
    values = tf.ones([2, 3000], tf.float16)
    assert float(global_sum(values)) == 6000.0
    assert float(global_mean(values * 2.0, tf.constant([[1.0], [0.0]]))) == 2.0


def test_integers_are_refused():
    with pytest.raises(LossError, match="need floats, got int32"):
        global_mean(tf.constant([1, 2]))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_concat_is_in_order_and_its_gradient_comes_back(count, replicas):
    def report(m, b, y):
        everybody = cross_replica_concat(y)
        # Each replica pulls on all rows, in its own measure.
        return {"all": tf.reduce_sum(everybody * tf.range(1.0, 17.0)) * tf.reduce_mean(b["x"])}

    train_step, found, _ = run(
        lambda: Line(report),
        _data(),
        strategy=replicas(count),
        optimizer=lambda: keras.optimizers.SGD(1e-3),
    )
    expected = float((X * np.arange(1.0, 17.0)).sum() * X.mean())
    assert found["losses/all"] == pytest.approx(expected)
    assert train_step.model.w.numpy() == pytest.approx(1 - 1e-3 * expected, rel=1e-5)


def test_outside_of_training_they_are_local():
    assert float(global_mean(tf.constant([1.0, 3.0]), [1.0, 0.0])) == 1.0
    assert cross_replica_concat(tf.ones([2, 1])).shape == (2, 1)


# Training: the same weights on 1, 2, 4 and 8 replicas


class _Net(keras.Model):
    """`kind` says how its loss is normalised."""

    def __init__(self, kind):
        super().__init__(name="net")
        self.kind = kind
        self.blocks = [keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(4)]
        self.bn = keras.layers.BatchNormalization(synchronized=True)

    def call(self, batch, training=False):
        h = self.blocks[0](batch["x"][:, None] / 8.0)
        if self.kind == "synchronised":
            h = self.bn(h, training=training)
        z = self.blocks[1](h)
        if not training:
            return z
        valid = batch["valid"]
        each = tf.reduce_mean((z - 1.0) ** 2, -1)
        if self.kind == "masked":
            return {"masked": global_mean(each, valid)}
        if self.kind == "local":  # wrong on purpose
            return {
                "masked": tf.math.divide_no_nan(tf.reduce_sum(each * valid), tf.reduce_sum(valid))
            }
        if self.kind == "sampled":  # as a detector: what is found decides what counts
            found = tf.cast(z[:, 0] > tf.reduce_mean(batch["x"]) / 1e3, tf.float32) + valid
            return {"a": global_mean(each, found), "b": {"c": global_mean(tf.abs(z[:, 1]), valid)}}
        if self.kind == "contrastive":
            z = tf.math.l2_normalize(z, -1)
            logits = z @ tf.transpose(cross_replica_concat(z)) * 2.0
            context = tf.distribute.get_replica_context()
            # There is none while the model is built.
            first = context.replica_id_in_sync_group * tf.shape(z)[0] if context else 0
            labels = (tf.range(tf.shape(z)[0]) + first + 1) % tf.shape(logits)[1]
            each = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        return {"mean": tf.reduce_mean(each)}


def _trained(kind, strategy, steps=20):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    train_step, iterator = make_step(
        lambda: _Net(kind),
        _data(),
        strategy=strategy,
        optimizer=lambda: keras.optimizers.SGD(0.1),
        clip_norm=1.0,
    )
    Engine(train_step).run(iterator, steps)
    return {v.path: v.numpy() for v in train_step.model.trainable_variables}


@pytest.mark.filterwarnings("ignore:No loss reaches")
@pytest.mark.parametrize("kind", ["mean", "masked", "sampled", "contrastive", "synchronised"])
def test_training_agrees_on_any_number_of_replicas(kind, replicas):
    one = _trained(kind, replicas(1))
    for count in (2, 4, 8):
        for path, value in _trained(kind, replicas(count)).items():
            np.testing.assert_allclose(value, one[path], rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.filterwarnings("ignore:No loss reaches")
def test_a_local_mean_does_not_agree(replicas):
    one, two = _trained("local", replicas(1)), _trained("local", replicas(2))
    assert max(np.abs(one[path] - two[path]).max() for path in one) > 1e-3


def test_it_is_public():
    assert tfloss.global_mean is global_mean
    assert tfloss.cross_replica_concat is cross_replica_concat and tfloss.global_sum is global_sum
