"""All state is restored exactly, and a checkpoint that doesn't match changes nothing."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.checkpoint.nets import CONTAINERS, built, chain, everything, scramble
from tfloss.checkpoint import CheckpointDirectory, load_values, named_variables, read
from tfloss.errors import CheckpointError

# Saving and restoring


@pytest.mark.promise(2)
@pytest.mark.parametrize("kind", [*CONTAINERS, "sequential", "functional"])
def test_everything_is_restored(kind, tmp_path):
    model, optimizer = built(kind)
    variables = everything(model, optimizer)
    covered = {id(v) for v in variables.values()}
    assert covered >= {id(v) for v in [*model.variables, *optimizer.variables]}
    scramble(variables)
    values = {name: read(v) for name, v in variables.items()}
    directory = CheckpointDirectory(tmp_path)
    path = directory.save(7, variables, {"note": [1, 2]})
    fresh = everything(*built(kind))
    assert directory.restore(str(path), fresh) == {"note": [1, 2]}
    assert fresh.keys() == values.keys()
    for name, variable in fresh.items():
        np.testing.assert_array_equal(read(variable), values[name], err_msg=name)


@pytest.mark.promise(2)
@pytest.mark.upstream
@pytest.mark.parametrize("container", ["list", "dict"])
def test_upstream_leaves_out_layers_in_lists_and_dicts(container, tmp_path):
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            dense = keras.layers.Dense(1)
            self.held = [dense] if container == "list" else {"d": dense}

        def call(self, x):
            return (self.held[0] if container == "list" else self.held["d"])(x)

    first, second = Model(), Model()
    for model in (first, second):
        model(tf.ones([1, 1]))
    path = tf.train.Checkpoint(model=first).write(str(tmp_path / "c"))
    tf.train.Checkpoint(model=second).read(path).assert_consumed()  # and yet:
    assert first.variables[0].numpy() != second.variables[0].numpy()


@pytest.mark.promise(13)
def test_dropout_continues_with_the_next_mask(tmp_path):
    def masks(model, count):
        return [model(tf.ones([4, 3]), training=True).numpy() for _ in range(count)]

    first, _ = built()
    masks(first, 2)
    path = CheckpointDirectory(tmp_path).save(2, named_variables(first))
    expected = masks(first, 2)
    second, _ = built()
    CheckpointDirectory(tmp_path).restore(path, named_variables(second))
    np.testing.assert_array_equal(masks(second, 2), expected)


@pytest.mark.promise(13)
@pytest.mark.upstream
def test_upstream_has_no_place_for_dropouts_state(tmp_path):
    with pytest.raises(ValueError, match="SeedGenerator"):
        tf.train.Checkpoint(seed=keras.random.SeedGenerator(1))


def test_a_tensorflow_generator_continues(tmp_path):
    class Layer(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="noise")
            self.random = tf.random.Generator.from_seed(1)

        def call(self, x):
            return x + self.random.normal([3])

    first, second = (keras.Sequential([Layer()], name="m") for _ in range(2))
    first(tf.zeros([3]))
    path = CheckpointDirectory(tmp_path).save(1, named_variables(first))
    expected = first(tf.zeros([3])).numpy()
    second.build((3,))
    CheckpointDirectory(tmp_path).restore(path, named_variables(second))
    np.testing.assert_array_equal(second(tf.zeros([3])), expected)


def test_dtypes_survive_and_tensorflow_can_read_it(tmp_path):
    variables = {
        "half": tf.Variable(tf.constant([1.5, 2.5], tf.bfloat16)),
        "flag": tf.Variable([True, False]),
        "word": tf.Variable(["a", "bc"]),
        "long": tf.Variable(2**60, dtype=tf.int64),
    }
    path = CheckpointDirectory(tmp_path).save(1, variables)
    before = {name: v.numpy().tolist() for name, v in variables.items()}
    for variable in variables.values():
        variable.assign(tf.zeros_like(variable))
    CheckpointDirectory(tmp_path).restore(path, variables)
    assert {name: v.numpy().tolist() for name, v in variables.items()} == before
    reader = tf.train.load_checkpoint(str(path / "variables"))
    assert reader.get_tensor("long") == 2**60
    assert load_values(path, ["flag"])["flag"].tolist() == [True, False]
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["step"] == 1 and manifest["variables"]["half"]["dtype"] == "bfloat16"


def test_a_variable_whose_size_changes(tmp_path):
    def make(value):
        shapes = tf.TensorShape([None, 2]), tf.TensorShape(None)
        return {str(i): tf.Variable(value, shape=shape) for i, shape in enumerate(shapes)}

    path = CheckpointDirectory(tmp_path).save(1, make([[1.0, 2.0]] * 3))
    variables = make([[0.0, 0.0]])
    CheckpointDirectory(tmp_path).restore(path, variables)
    assert [v.numpy().tolist() for v in variables.values()] == [[[1.0, 2.0]] * 3] * 2


@pytest.mark.promise(28)
def test_a_learning_rate_can_stay_as_it_is(tmp_path):
    path = CheckpointDirectory(tmp_path).save(1, chain("a"))
    variables = chain("a", optimizer=keras.optimizers.Adam(0.5))
    rate = variables.pop("optimizer/learning_rate")
    CheckpointDirectory(tmp_path).restore(path, variables, ignore=["optimizer/learning_rate"])
    assert float(rate) == 0.5
    saved = load_values(path, ["optimizer/learning_rate"])["optimizer/learning_rate"]
    assert saved == np.float32(0.1)


# Mismatches


@pytest.mark.promise(12)
def test_a_model_that_differs_is_left_alone_and_all_differences_are_listed(tmp_path):
    path = CheckpointDirectory(tmp_path).save(1, chain("a", "b"))
    other = chain("a", "new", "b")
    before = {name: read(v) for name, v in other.items()}
    with pytest.raises(CheckpointError) as e:
        CheckpointDirectory(tmp_path).restore(path, other)
    assert "not in the checkpoint: model/chain/new/kernel, model/chain/new/bias" in str(e.value)
    assert "optimizer/chain/new/kernel/momentum" in str(e.value)
    assert "load_weights" in str(e.value)
    for name, variable in other.items():
        np.testing.assert_array_equal(read(variable), before[name])


@pytest.mark.promise(12)
@pytest.mark.parametrize("optimizer", [keras.optimizers.Adam, keras.optimizers.Adafactor])
def test_an_inserted_layer_does_not_take_the_slots_of_another(optimizer, tmp_path):
    saved = chain("a", "b", optimizer=optimizer(0.1))
    scramble(saved)
    path = CheckpointDirectory(tmp_path).save(1, saved)
    other = chain("a", "new", "b", optimizer=optimizer(0.1))
    old = {name: v for name, v in other.items() if "/new/" not in name}
    CheckpointDirectory(tmp_path).restore(path, old)
    for name, variable in old.items():
        np.testing.assert_array_equal(read(variable), read(saved[name]), err_msg=name)
    new = [read(v) for name, v in other.items() if name.startswith("optimizer/chain/new/")]
    assert new and not any(value.any() for value in new)


def _with_slots(*names):
    """A model that holds layers by attribute, and its Adam, each momentum a number of its own."""

    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="m")
            for name in names:
                setattr(self, name, keras.layers.Dense(2, name=name, use_bias=False))

        def call(self, x):
            for name in names:
                x = getattr(self, name)(x)
            return x

    model, optimizer = Model(), keras.optimizers.Adam(0.1)
    model(tf.ones([1, 2]))
    optimizer.build(model.trainable_variables)
    return model, optimizer


@pytest.mark.promise(12)
@pytest.mark.upstream
def test_upstream_gives_slots_to_the_layer_in_the_same_place(tmp_path):
    model, optimizer = _with_slots("a", "b")
    for number, slot in enumerate(optimizer._momentums):
        slot.assign(tf.fill([2, 2], 1.0 + number))
    path = tf.train.Checkpoint(model=model, optimizer=optimizer).write(str(tmp_path / "c"))
    model, optimizer = _with_slots("a", "new", "b")
    tf.train.Checkpoint(model=model, optimizer=optimizer).read(path).expect_partial()
    a, new, b = (slot.numpy()[0, 0] for slot in optimizer._momentums)
    assert (a, new, b) == (1.0, 2.0, 0.0)  # should be 1, 0, 2


@pytest.mark.promise(12)
@pytest.mark.upstream
def test_upstream_restores_a_part_before_it_fails(tmp_path):
    def model(width):
        layers = [keras.layers.Dense(2, name="a"), keras.layers.Dense(width, name="b")]
        model = keras.Sequential(layers, name="m")
        model.build((None, 2))
        return model

    first, second = model(2), model(3)
    path = tf.train.Checkpoint(model=first).write(str(tmp_path / "c"))
    with pytest.raises(ValueError, match="incompatible"):
        tf.train.Checkpoint(model=second).read(path)
    np.testing.assert_array_equal(second.layers[0].kernel, first.layers[0].kernel)
