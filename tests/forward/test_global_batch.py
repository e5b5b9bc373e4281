import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.toys import Line, run
from tfloss.errors import LossError
from tfloss.forward.global_batch import cross_replica_concat, global_mean, global_sum

# 16 examples; the valid ones are not the same number in any two quarters, and none in the last.
X = np.arange(1.0, 17.0, dtype=np.float32)
VALID = np.array([1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0], np.float32)


def _data(batch=16):
    data = tf.data.Dataset.from_tensor_slices({"x": X, "valid": VALID})
    return data.batch(batch, drop_remainder=True).repeat()


# Values and gradients, by hand


@pytest.mark.promise(9)
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


@pytest.mark.promise(25)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("mode", ["graph", "step"])
def test_no_valid_element_anywhere_is_zero_with_zero_gradient(count, mode, replicas):
    def report(m, b, y):
        bad = y + np.nan
        return {"off": global_mean(bad, tf.zeros_like(y)), "on": global_mean(y)}

    train_step, found, _ = run(lambda: Line(report), _data(), strategy=replicas(count), mode=mode)
    assert found["losses/off"] == 0.0
    assert train_step.model.w.numpy() == pytest.approx(1 - 0.1 * X.mean())


def test_weights_broadcast_and_half_precision_is_summed_in_float32():
    values = tf.ones([2, 3000], tf.float16)
    assert float(global_sum(values)) == 6000.0
    assert float(global_mean(values * 2.0, tf.constant([[1.0], [0.0]]))) == 2.0


def test_integers_are_rejected():
    with pytest.raises(LossError, match="need floating-point values, got int32"):
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


def test_it_is_public():
    assert tfloss.global_mean is global_mean
    assert tfloss.cross_replica_concat is cross_replica_concat and tfloss.global_sum is global_sum
