"""The mismatch between a checkpoint and variables is listed, with advice."""

import keras
import pytest
import tensorflow as tf

from tfloss.checkpoint import CheckpointDirectory, named_variables
from tfloss.errors import CheckpointError


def test_shapes_dtypes_and_leftovers_are_listed(tmp_path):
    saved = {
        "a": tf.Variable([1.0]),
        "b": tf.Variable(1),
        **{f"c{i}": tf.Variable(0.0) for i in range(12)},
    }
    path = CheckpointDirectory(tmp_path).save(1, saved)
    here = {"a": tf.Variable([1.0, 2.0]), "b": tf.Variable(1.0)}
    with pytest.raises(CheckpointError) as e:
        CheckpointDirectory(tmp_path).restore(path, here)
    for part in (
        "different shape: a (saved [1], here [2])",
        "different dtype: b (saved int32, here float32)",
        "only in the checkpoint: c0, c1",
        "c9, ... and 2 more",
    ):
        assert part in str(e.value)
    assert CheckpointDirectory(tmp_path).restore(path, {}, ignore=list(saved)) == {}


def _numbered(before):
    """Two Dense layers of different widths, after so many others in the process."""

    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="m")
            self.both = [keras.layers.Dense(3), keras.layers.Dense(2)]

        def call(self, x):
            return self.both[1](self.both[0](x))

    keras.utils.clear_session(free_memory=False)
    for _ in range(before):
        keras.layers.Dense(1)
    model = Model()
    model(tf.ones([1, 5]))
    return named_variables(model)


@pytest.mark.parametrize("before", [1, 2])  # dense_1 is in both, with another shape; or in none
def test_automatic_layer_numbers_are_recognised(before, tmp_path):
    path = CheckpointDirectory(tmp_path).save(1, _numbered(0))
    with pytest.raises(CheckpointError, match="only in the numbers that Keras.*clear_session"):
        CheckpointDirectory(tmp_path).restore(path, _numbered(before))


def test_a_name_with_another_number_and_shape_is_another_variable(tmp_path):
    path = CheckpointDirectory(tmp_path).save(1, {"dense/kernel": tf.Variable([1.0])})
    with pytest.raises(CheckpointError, match="changed on purpose"):
        CheckpointDirectory(tmp_path).restore(path, {"dense_1/kernel": tf.Variable([1.0, 2.0])})


def test_a_layer_that_was_built_before_its_model(tmp_path):
    """Its path has no model. `adapt` builds a layer, for example."""

    def variables(early):
        keras.utils.clear_session(free_memory=False)

        class Model(keras.Model):
            def __init__(self):
                super().__init__(name="m")
                self.dense = keras.layers.Dense(1, name="d")
                if early:
                    self.dense.build((None, 3))

            def call(self, x):
                return self.dense(x)

        model = Model()
        model(tf.ones([1, 3]))
        return {f"model/{k}": v for k, v in named_variables(model).items()}

    path = CheckpointDirectory(tmp_path).save(1, variables(early=True))
    with pytest.raises(CheckpointError, match="differ only in their beginnings.*adapt them"):
        CheckpointDirectory(tmp_path).restore(path, variables(early=False))
