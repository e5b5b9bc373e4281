"""The loaded export is compared with the model."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfloss.errors import ExportError
from tfloss.saved_model.export import export
from tfloss.saved_model.verify import _difference


def test_an_export_that_disagrees_is_not_written(tmp_path):
    class Counts(keras.Model):
        calls = 0

        def call(self, batch, training=False):
            self.calls += 1  # frozen in the graph, but not in the model
            return {"y": batch["x"] * 0 + self.calls, "x2": 2 * batch["x"]}

    path = tmp_path / "export"
    with pytest.raises(ExportError, match="output 'y' of signature 'serving_default' differs by"):
        export(Counts(), path, {"x": tf.TensorSpec([None])})
    assert not list(tmp_path.iterdir())
    export(Counts(), path, {"x": tf.TensorSpec([None])}, verify=False)
    assert path.is_dir()


def test_differences_are_measured_against_the_output():
    big, nan = np.float32([100, 1]), np.float32([np.nan, 1])
    assert _difference(big, big + np.float32(0.005), 1e-4) is None
    assert _difference(big, big + np.float32(0.5), 1e-4) == "differs by up to 0.5 (allowed: 0.01)"
    assert _difference(nan, nan, 1e-4) is None
    assert "nan" in (_difference(big, nan, 1e-4) or "")
    assert "[1] instead of float32[2]" in (_difference(big, big[:1], 1e-4) or "")
    assert _difference(np.array([1, 2]), np.array([1, 3]), 1e9) == "differs in 1 of 2 values"
    infinite = np.float32([np.inf, 1])
    assert _difference(infinite, infinite + np.float32(1e-6), 1e-4) is None
