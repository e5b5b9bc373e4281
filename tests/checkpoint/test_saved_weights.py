"""Averages in a checkpoint, and the variables in an export."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.checkpoint.test_load_weights import _model, _values
from tests.toys import Line
from tfloss.checkpoint import CheckpointDirectory, named_variables
from tfloss.checkpoint.saved_weights import weights_of_checkpoint, weights_of_export
from tfloss.errors import CheckpointError


def test_averages_replace_the_weights_that_have_some(tmp_path):
    model = {f"model/{k}": v for k, v in named_variables(_model(["encoder", "head"])).items()}
    averages = {"ema/m/encoder/kernel": tf.Variable([[5.0, 6.0], [7.0, 8.0]])}
    CheckpointDirectory(tmp_path).save(1, {**model, **averages})
    fresh = _model(["encoder", "head"])
    report = tfloss.load_weights(fresh, tmp_path, ema=True)
    assert len(report.loaded) == 4 and str(report) == "4 variables loaded"
    np.testing.assert_array_equal(fresh.layers[0].kernel, [[5.0, 6.0], [7.0, 8.0]])
    assert list(_values(fresh).values())[1:] == [2.0, 3.0, 4.0]
    tfloss.load_weights(fresh, tmp_path)
    assert list(_values(fresh).values()) == [1.0, 2.0, 3.0, 4.0]


def test_renamed_averages(tmp_path):
    model = {f"model/{k}": v for k, v in named_variables(_model(["encoder"])).items()}
    CheckpointDirectory(tmp_path).save(1, {**model, "ema/m/encoder/bias": tf.Variable([5.0, 6.0])})
    fresh = _model(["backbone"])
    tfloss.load_weights(fresh, tmp_path, ema=True, rename={"m/encoder": "m/backbone"})
    np.testing.assert_array_equal(fresh.layers[0].bias, [5.0, 6.0])


def test_averages_of_half_precision_weights(tmp_path):
    """They are float32, and rounded to the dtype of the weight."""
    layer = keras.layers.Dense(1, dtype="float16", name="d", use_bias=False)
    model = keras.Sequential([layer], name="m")
    model.build((None, 1))
    third = tf.Variable([[1 / 3]])
    variables = {"model/m/d/kernel": layer.kernel, "ema/m/d/kernel": third}
    CheckpointDirectory(tmp_path).save(1, variables)
    tfloss.load_weights(model, tmp_path, ema=True)
    assert layer.kernel.numpy().item() == np.float16(1 / 3)


def test_a_checkpoint_without_averages(tmp_path):
    CheckpointDirectory(tmp_path).save(1, {"model/w": tf.Variable(1.0)})
    with pytest.raises(CheckpointError, match="no averages of the weights.*made without ema="):
        weights_of_checkpoint(CheckpointDirectory(tmp_path).at(1), ema=True)


def test_the_averages_of_a_run(tmp_path):
    """A frozen weight, statistics and a trained weight, as `Trainer.averaged` has them."""
    model = Line()
    data = tf.data.Dataset.from_tensors({"x": tf.constant([1.0, 2.0])}).repeat()
    trainer = tfloss.Trainer(
        model, keras.optimizers.SGD(0.1), workdir=tmp_path, ema=0.5, jit=False, default_hooks=False
    )
    trainer.train(data, 2)
    trainer.save_checkpoint()
    # w: 1, 0.85, 0.7; average: 1, 0.925, 0.8125
    fresh = Line()
    fresh.built = True
    tfloss.load_weights(fresh, tmp_path, ema=True)
    assert fresh.w.numpy() == pytest.approx(0.8125)
    tfloss.load_weights(fresh, tmp_path)
    assert fresh.w.numpy() == pytest.approx(0.7)


@pytest.mark.parametrize("count", [1, 2])
def test_an_export_has_its_variables_by_name(count, tmp_path, replicas):
    with replicas(count).scope():
        layers = [keras.layers.Dense(2, name="a.b"), keras.layers.BatchNormalization(name="bn")]
        model = keras.Sequential(layers, name="m")
        model.build((None, 2))
    model.layers[1].moving_mean.assign([3.0, 4.0])
    path = tfloss.export(model, tmp_path / "e", inputs=tf.TensorSpec([None, 2]))
    keras.utils.clear_session(free_memory=False)
    layers = [keras.layers.Dense(2, name="a.b"), keras.layers.BatchNormalization(name="bn")]
    fresh = keras.Sequential(layers, name="m")
    fresh.build((None, 2))
    report = tfloss.load_weights(fresh, path)
    assert len(report.loaded) == 6
    for ours, theirs in zip(fresh.weights, model.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_an_export_lacks_what_inference_does_not_use(tmp_path):
    class Net(keras.Model):
        def __init__(self):
            super().__init__(name="net")
            self.head = keras.layers.Dense(1, name="head")
            self.extra = keras.layers.Dense(1, name="extra")

        def call(self, x, training=False):
            y = self.head(x)
            return {"loss": tf.reduce_mean(self.extra(y))} if training else y

    model = Net()
    model(tf.ones([1, 2]), training=True)
    path = tfloss.export(model, tmp_path / "e", inputs=tf.TensorSpec([None, 2]))
    with pytest.raises(CheckpointError, match="(?s)not in the export: net/extra/kernel.*inference"):
        tfloss.load_weights(model, path)
    report = tfloss.load_weights(model, path, strict=False)
    assert report.missing == ["net/extra/kernel", "net/extra/bias"] and len(report.loaded) == 2


def test_exports_that_cannot_be_read(tmp_path):
    tf.saved_model.save(tf.Module(), str(tmp_path / "foreign"))
    with pytest.raises(CheckpointError, match="foreign has no names for its variables"):
        weights_of_export(tmp_path / "foreign")
    path = tfloss.export(_model(["a"]), tmp_path / "e", inputs=tf.TensorSpec([None, 2]))
    (path / "variables" / "variables.index").write_bytes(b"")
    with pytest.raises(CheckpointError, match="variables.* can't be read, so the export is corrup"):
        weights_of_export(path)


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("kind", ["default", "export"])
def test_what_export_best_writes(kind, ema, tmp_path):
    def export(model, path):
        tfloss.export(model, path, inputs={"x": tf.TensorSpec([None])})

    data = tf.data.Dataset.from_tensors({"x": tf.constant([1.0, 2.0])})
    evaluate = tfloss.hooks.Evaluate(data, {}, losses=True)
    hook = tfloss.hooks.ExportBest(
        "val/losses/total", export=None if kind == "default" else export, ema=ema
    )
    trainer = tfloss.Trainer(
        Line(),
        keras.optimizers.SGD(0.1),
        workdir=tmp_path,
        hooks=[evaluate, hook],
        ema=0.5,
        jit=False,
        default_hooks=False,
    )
    trainer.train(data.repeat(), 2)
    fresh = Line()
    fresh.built = True
    assert tfloss.load_weights(fresh, tmp_path / "export").loaded == ["line/w"]
    assert fresh.w.numpy() == pytest.approx(0.8125 if ema else 0.7)
    with pytest.raises(CheckpointError, match="leave ema out"):
        tfloss.load_weights(fresh, tmp_path / "export", ema=True)
