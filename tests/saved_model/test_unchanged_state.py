import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.saved_model.models import Plain
from tfloss.errors import ExportError
from tfloss.saved_model.export import export
from tfloss.saved_model.unchanged_state import unchanged_state

SPEC = {"x": tf.TensorSpec([None, 2])}


class Around(keras.Model):
    def __init__(self, forward, **parts):
        super().__init__(name="m")
        for name, part in parts.items():
            setattr(self, name, part)
        self.forward = forward

    def call(self, batch, training=False):
        return self.forward(self, batch["x"])


def drawn(model, x):
    return x + keras.random.normal([1], seed=model.seeds)


def drawn_and_dropped(model, x):
    keras.random.normal([1], seed=model.seeds)
    return x + 1.0


def test_random_numbers_that_reach_no_output_are_left_out(tmp_path):
    model = Around(drawn_and_dropped, seeds=keras.random.SeedGenerator(3))
    model({"x": tf.ones([1, 2])})
    before = model.seeds.state.numpy().tolist()
    served = tf.saved_model.load(str(export(model, tmp_path / "export", SPEC)))
    assert model.seeds.state.numpy().tolist() == before
    result = served.signatures["serving_default"](x=tf.ones([1, 2]))["output"]
    np.testing.assert_array_equal(result, [[2.0, 2.0]])


def test_random_numbers_in_an_output_are_refused(tmp_path):
    model = Around(drawn, seeds=keras.random.SeedGenerator(3))
    model({"x": tf.ones([1, 2])})
    with pytest.raises(ExportError, match="(?s)draws random numbers from the state of layer 'm'"):
        export(model, tmp_path / "export", SPEC)
    assert not list(tmp_path.iterdir())


def test_a_changed_variable_is_named_with_its_line():
    model = Around(lambda model, x: x, count=keras.Variable(0.0, name="count"))
    model({"x": tf.ones([1, 2])})
    line = f"{__file__}:.*in test_a_changed"
    with pytest.raises(ExportError, match=f"{line}.*'count'"), unchanged_state(model, "s"):
        model.count.assign(1.0)
    assert model.count.numpy() == 0.0


def test_keras_random_without_a_seed_is_refused(tmp_path):
    model = Plain(lambda b: b["x"] + keras.random.normal([1]))
    model({"x": tf.ones([1, 2])})
    with pytest.raises(ExportError, match="changes a variable"):
        export(model, tmp_path / "export", SPEC)
