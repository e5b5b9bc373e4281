"""Keras and TensorFlow still write weights as `tfloss._upstream.keras_weight_files` expects."""

import io

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.checkpoint.nets import CONTAINERS, built
from tfloss import _upstream

pytestmark = pytest.mark.upstream


@pytest.mark.parametrize("kind", [*CONTAINERS, "sequential", "functional"])
def test_a_model_stores_what_is_expected_where_it_is_expected(kind, tmp_path):
    model, _ = built(kind)
    for index, variable in enumerate(model.variables):
        variable.assign(tf.cast(tf.fill(variable.shape, index), variable.dtype))
    model.save_weights(tmp_path / "a.weights.h5")
    file = _upstream.WeightsFile(tmp_path / "a.weights.h5")
    expected, names = {}, {}
    for path, group in _upstream.weight_groups(model).items():
        names[path] = group.name
        if group.values:
            assert isinstance(group.layer, keras.Layer) and group.layer.name == group.name
        for key, variable in group.values.items():
            expected[_upstream.entry_name(path, key)] = variable
    assert set(file.entries) == set(expected) and len(expected) == 12
    assert file.names == names
    for entry, variable in expected.items():
        np.testing.assert_array_equal(file.read(entry), variable.numpy())
        assert file.entries[entry] == (list(variable.shape), "float32")
    file.close()


def test_bfloat16_is_kept_as_such(tmp_path):
    layer = keras.layers.Dense(2, dtype="bfloat16", name="d")
    model = keras.Sequential([layer], name="m")
    model.build((None, 1))
    model.save_weights(tmp_path / "a.weights.h5")
    file = _upstream.WeightsFile(io.BytesIO((tmp_path / "a.weights.h5").read_bytes()))
    assert file.entries["layers/dense/vars/0"] == ([1, 2], "bfloat16")
    assert file.read("layers/dense/vars/0").dtype == layer.kernel.numpy().dtype


def test_keys_of_a_dict_in_an_object_graph(tmp_path):
    module = tf.Module()
    keys = ["net/head/kernel", "a.b/c#1", ".S", "d..e"]
    module.state = {key: tf.Variable(float(i)) for i, key in enumerate(keys)}
    module.other = [tf.Variable(9.0)]
    tf.saved_model.save(module, str(tmp_path))
    reader = tf.train.load_checkpoint(str(tmp_path / "variables" / "variables"))
    found = {
        _upstream.key_in_object_graph(name, "state"): reader.get_tensor(name)
        for name in reader.get_variable_to_shape_map()
    }
    found.pop(None)
    assert found == dict(zip(keys, [0.0, 1.0, 2.0, 3.0], strict=True))
