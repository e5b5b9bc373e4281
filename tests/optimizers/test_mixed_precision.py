import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.toys import make_step, run
from tfloss.engine.engine import Engine
from tfloss.optimizers.mixed_precision import LossScale, set_precision

BOX = np.full([8, 1], 70_000.0, np.float32)  # infinite in float16, 70144 in bfloat16
DATA = (
    tf.data.Dataset.from_tensor_slices({"x": np.ones([8, 4], np.float32), "box": BOX})
    .batch(8)
    .repeat()
)


class Net(keras.Model):
    """Notes what it sees at trace time; `grow` multiplies the loss."""

    def __init__(self, grow=1.0):
        super().__init__(name="net")
        self.body = keras.layers.Dense(3, name="body")
        self.attend = keras.layers.MultiHeadAttention(1, 2, name="attend")
        self.head = keras.layers.Dense(1, name="head", dtype="float32")
        self.grow = grow
        self.seen = {}

    def call(self, batch, training=False):
        z = self.body(batch["x"])
        a = self.attend(z[:, None], z[:, None])[:, 0]
        y = self.head(z + a)
        self.seen = {"z": z.dtype.name, "a": a.dtype.name, "y": y.dtype.name}
        # The label is used as it is: it must not have been cast.
        error = tf.reduce_mean((batch["box"] - 70_000.0) + self.grow * y)
        return {"error": error, "half": tf.reduce_mean(z)}


@pytest.mark.promise(11)
@pytest.mark.parametrize("name", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("count", [1, 2])
def test_layers_compute_in_half_and_labels_stay_exact(name, count, replicas):
    train_step, found, _ = run(Net, DATA, strategy=replicas(count), precision=name)
    half = name.removeprefix("mixed_")
    assert train_step.model.seen == {"z": half, "a": half, "y": "float32"}
    assert all(v.dtype == "float32" for v in train_step.model.trainable_variables)
    assert np.isfinite(found["losses/error"]) and abs(found["losses/error"]) < 10.0
    assert keras.config.dtype_policy().name == "float32"  # other models are left alone


def test_bfloat16_needs_no_scale_and_float16_has_one():
    assert "loss_scale" not in run(Net, DATA, precision="mixed_bfloat16")[1]
    train_step, found, _ = run(Net, DATA, precision="mixed_float16")
    assert found["loss_scale"] == 2.0**15
    assert "loss_scale/value" in train_step.extra_variables()


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision='fp16': choose one of float32, mixed_bf"):
        set_precision(Net(), "fp16")


@pytest.mark.promise(3)
@pytest.mark.parametrize("count", [1, 2])
def test_an_overflowing_gradient_halves_the_scale_and_is_left_out(count, replicas):
    # The gradient into `body` passes through float16: 2**15 * 8 / 8 examples * head is too much.
    train_step, iterator = make_step(
        lambda: Net(grow=64.0), DATA, strategy=replicas(count), precision="mixed_float16"
    )
    engine = Engine(train_step)
    before = [v.numpy() for v in train_step.model.trainable_variables]
    scales, skipped = [], []
    for _ in range(8):
        row = engine.run(iterator, 1)
        values = dict(zip(row.names, row.rows()[0].tolist(), strict=True))
        scales.append(values["loss_scale"])
        skipped.append(values["skipped"])
        if values["skipped"]:
            for old, new in zip(before, train_step.model.trainable_variables, strict=True):
                np.testing.assert_array_equal(old, new.numpy())
        else:
            break
    assert skipped[0] == 1.0 and skipped[-1] == 0.0
    assert scales == [2.0**15 / 2**i for i in range(len(scales))]
    assert int(train_step.optimizers["optimizer"].iterations.numpy()) == 1


def test_the_scale_cancels_out_of_the_update():
    kernels = []
    for name in ("float32", "mixed_float16"):
        keras.utils.set_random_seed(0)
        kernels.append(run(Net, DATA, precision=name)[0].model.head.kernel.numpy())
    np.testing.assert_allclose(*kernels, rtol=0.01)


def test_the_scale_grows_after_a_number_of_good_updates():
    scale = LossScale(8.0, interval=3)
    seen = []
    for finite in [True, True, True, True, False, True]:
        scale.update(tf.constant(finite))
        seen.append((float(scale.value), int(scale.good)))
    assert seen == [(8, 1), (8, 2), (16, 0), (16, 1), (8, 0), (8, 1)]
