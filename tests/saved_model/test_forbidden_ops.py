"""Ops that don't belong in an inference graph are found, with their source line."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.saved_model.models import Plain, graph_of
from tfloss.errors import ExportError
from tfloss.saved_model.export import export


@tf.function
def _noisy(x):
    return x + tf.random.normal(tf.shape(x))


class Trains(keras.Model):
    """Forgets to tell its layers that it does not train."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def call(self, batch, training=False):
        return self.layer(batch["x"], training=True)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda b: b["x"] + tf.random.uniform([]), "RandomUniform.*draws random"),
        (lambda b: tf.map_fn(lambda x: x + tf.random.uniform([]), b["x"]), "RandomUniform"),
        (lambda b: b["x"] + tf.random.get_global_generator().uniform([]), "Rng.*draws random"),
        (lambda b: tf.numpy_function(np.sin, [b["x"]], tf.float32), "PyFunc.*calls Python"),
        (lambda b: (tf.raw_ops.ScalarSummary(tags="a", values=1.0), b["x"]), "writes a summary"),
        (lambda b: tf.raw_ops.CollectiveReduceV2(
            input=b["x"], group_size=1, group_key=1, instance_key=1, ordering_token=[],
            merge_op="Add", final_op="Id"), "CollectiveReduceV2.*waits for other replicas"),
    ],
)  # fmt: skip
def test_ops_of_training_are_refused_with_their_line(tmp_path, function, message):
    with pytest.raises(ExportError, match=message) as caught:
        export(Plain(function), tmp_path / "export", {"x": tf.TensorSpec([None, 2])})
    assert f"{__file__}:{function.__code__.co_firstlineno}" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_an_op_in_a_nested_function_has_its_own_line(tmp_path):
    def forward(batch):
        return tf.cond(batch["x"][0, 0] > 0, lambda: _noisy(batch["x"]), lambda: batch["x"])

    with pytest.raises(ExportError, match="RandomStandardNormal.*draws random") as caught:
        export(Plain(forward), tmp_path / "export", {"x": tf.TensorSpec([None, 2])})
    line = _noisy.python_function.__code__.co_firstlineno + 2
    assert f"{__file__}:{line}, in _noisy" in str(caught.value)


@pytest.mark.parametrize("layer", [keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)])
def test_layers_left_in_training_are_refused(tmp_path, layer):
    with pytest.raises(ExportError, match=r"changes a variable.*in call.*|in call.*changes a var"):
        export(Trains(layer), tmp_path / "export", {"x": tf.TensorSpec([None, 2])})


def test_plain_summaries_do_nothing(tmp_path):
    def forward(batch):
        tf.summary.scalar("mean", tf.reduce_mean(batch["x"]), step=0)
        tfloss.summary.scalar("mean", tf.reduce_mean(batch["x"]))
        return batch["x"] + 1

    with tf.summary.create_file_writer(str(tmp_path / "events")).as_default():
        path = export(Plain(forward), tmp_path / "export", {"x": tf.TensorSpec([None])})
    assert "Summary" not in str(graph_of(path))
