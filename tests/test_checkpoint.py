import json
import os

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
import tfloss.checkpoint
from tfloss.checkpoint import (
    CheckpointDirectory,
    named_optimizer_variables,
    named_variables,
    read,
    sync_replicas,
)
from tfloss.errors import CheckpointError

CONTAINERS = {
    "list": lambda a, b: [a, b],
    "dict": lambda a, b: {"a": a, "b": b},
    "nested": lambda a, b: [{"deep": [a]}, (b,)],
    "tuple": lambda a, b: (a, b),
}


class _Block(keras.layers.Layer):
    def __init__(self, name):
        super().__init__(name=name)
        self.parts = [
            keras.layers.Dense(3, name="dense"),
            keras.layers.BatchNormalization(name="bn"),
            keras.layers.Dropout(0.5, name="drop"),
        ]

    def call(self, x, training=False):
        for part in self.parts:
            x = part(x, training=training) if part.name != "dense" else part(x)
        return x


class _Net(keras.Model):
    def __init__(self, container):
        super().__init__(name="net")
        blocks = _Block("x"), _Block("y")
        self.blocks = CONTAINERS[container](*blocks)
        self.order = list(blocks)
        self.count = tf.Variable(0, name="count")
        self.queues = {"q": tf.Variable([1.0, 2.0])}

    def call(self, x, training=False):
        for block in self.order:
            x = block(x, training=training)
        return x


def _built(container="list"):
    model = _Net(container)
    model(tf.ones([2, 3]))
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.build(model.trainable_variables)
    return model, optimizer


def _everything(model, optimizer):
    slots = named_optimizer_variables(optimizer, model.trainable_variables)
    return {f"model/{k}": v for k, v in named_variables(model).items()} | {
        f"optimizer/{k}": v for k, v in slots.items()
    }


def _scramble(variables):
    for i, variable in enumerate(variables.values()):
        value = read(variable)
        variable.assign(np.full(value.shape, i + 2).astype(value.dtype))


# Names


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_variable_has_a_name_whatever_holds_its_layer(container):
    model, _ = _built(container)
    layer = {"dense/kernel", "dense/bias", "drop/seed_generator"}
    layer |= {f"bn/{n}" for n in ("gamma", "beta", "moving_mean", "moving_variance")}
    expected = {f"net/{block}/{name}" for block in "xy" for name in layer}
    assert set(named_variables(model)) == expected | {"net/count", "net/queues"}


def test_slots_are_named_after_their_variable():
    model, optimizer = _built()
    names = set(named_optimizer_variables(optimizer, model.trainable_variables))
    paths = [v.path for v in model.trainable_variables]
    slots = {f"{path}/{slot}" for path in paths for slot in ("momentum", "velocity")}
    assert names == slots | {"iteration", "learning_rate"}


def test_paths_that_differ_only_in_a_separator():
    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="m")
            self.one = keras.layers.Dense(1, name="a_b", use_bias=False)
            self.two = _Outer()

        def call(self, x):
            return self.one(x) + self.two(x)

    class _Outer(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="a")
            self.inner = keras.layers.Dense(1, name="b", use_bias=False)

        def call(self, x):
            return self.inner(x)

    model = Model()
    model(tf.ones([1, 1]))
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build(model.trainable_variables)
    names = named_optimizer_variables(optimizer, model.trainable_variables)
    assert {"m/a_b/kernel/momentum", "m/a/b/kernel/momentum"} < set(names)


def test_two_variables_of_one_path_are_kept_apart():
    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="m")
            self.same = [keras.layers.Dense(1, name="d", use_bias=False) for _ in range(2)]

        def call(self, x):
            return self.same[1](self.same[0](x))

    model = Model()
    model(tf.ones([1, 1]))
    assert list(named_variables(model)) == ["m/d/kernel", "m/d/kernel#1"]


# There and back


@pytest.mark.parametrize("container", CONTAINERS)
def test_everything_is_restored(container, tmp_path):
    variables = _everything(*_built(container))
    _scramble(variables)
    values = {name: read(v) for name, v in variables.items()}
    directory = CheckpointDirectory(tmp_path)
    path = directory.save(7, variables, {"note": [1, 2]})
    keras.utils.clear_session(free_memory=False)
    fresh = _everything(*_built(container))
    assert directory.restore(path, fresh) == {"note": [1, 2]}
    assert fresh.keys() == values.keys()
    for name, variable in fresh.items():
        np.testing.assert_array_equal(read(variable), values[name], err_msg=name)


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


def test_dropout_goes_on_with_the_next_mask(tmp_path):
    def masks(model, count):
        return [model(tf.ones([4, 3]), training=True).numpy() for _ in range(count)]

    first, _ = _built()
    masks(first, 2)
    path = CheckpointDirectory(tmp_path).save(2, named_variables(first))
    expected = masks(first, 2)
    keras.utils.clear_session(free_memory=False)
    second, _ = _built()
    CheckpointDirectory(tmp_path).restore(path, named_variables(second))
    np.testing.assert_array_equal(masks(second, 2), expected)


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
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["step"] == 1 and manifest["variables"]["half"]["dtype"] == "bfloat16"


# Replicas (pains.md 4)


def _batch_norm(strategy):
    with strategy.scope():
        model = keras.Sequential([keras.layers.BatchNormalization(momentum=0.5, name="bn")])
        model.build((None, 1))
    return model


def _train_forward(strategy, model):
    feed = strategy.experimental_distribute_values_from_function(
        lambda c: tf.fill([4, 1], [1.0, 5.0][c.replica_id_in_sync_group])
    )
    tf.function(lambda x: strategy.run(lambda x: model(x, training=True), (x,)))(feed)


def test_statistics_are_the_mean_over_replicas(replicas, tmp_path):
    strategy = replicas(2)
    model = _batch_norm(strategy)
    _train_forward(strategy, model)
    mean = model.layers[0].moving_mean
    local = strategy.experimental_local_results(mean.value)
    assert [v.numpy().tolist() for v in local] == [[0.5], [2.5]]
    path = CheckpointDirectory(tmp_path).save(1, named_variables(model))
    keras.utils.clear_session(free_memory=False)
    single = _batch_norm(replicas(1))
    CheckpointDirectory(tmp_path).restore(path, named_variables(single))
    assert single.layers[0].moving_mean.numpy().tolist() == [1.5]
    sync_replicas(model)
    assert [v.numpy().tolist() for v in local] == [[1.5], [1.5]]


def test_a_trainer_goes_on_from_the_state_that_it_saved(replicas, tmp_path):
    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="m")
            self.bn = keras.layers.BatchNormalization(momentum=0.5, name="bn")

        def call(self, batch, training=False):
            return tf.reduce_mean(self.bn(batch["x"], training=training))

    def build(strategy):
        keras.utils.clear_session(free_memory=False)
        with strategy.scope():
            model, optimizer = Model(), keras.optimizers.SGD(0.1)
        return tfloss.Trainer(
            model,
            optimizer,
            strategy=strategy,
            workdir=tmp_path,
            hooks=[tfloss.hooks.SaveCheckpoint(tfloss.Every(steps=1), keep_last=None)],
            default_hooks=False,
        )

    data = tf.data.Dataset.from_tensors({"x": [[1.0], [1.0], [5.0], [5.0]]}).repeat()
    straight = build(replicas(2))
    straight.train(data, steps=3)
    local = replicas(2).experimental_local_results(straight.model.bn.moving_mean.value)
    assert local[0].numpy() == local[1].numpy() == [2.625]  # 3 (1 - 1/8), the mean of both
    tfloss.checkpoint.CheckpointDirectory(tmp_path / "checkpoints").delete(3)
    resumed = build(replicas(2))
    resumed.train(data, steps=3)
    for name, variable in straight.state().variables().items():
        np.testing.assert_array_equal(read(variable), read(resumed.state().variables()[name]))


def test_one_replica_restores_into_several(replicas, tmp_path):
    single = _batch_norm(replicas(1))
    single.layers[0].moving_mean.assign([3.0])
    path = CheckpointDirectory(tmp_path).save(1, named_variables(single))
    keras.utils.clear_session(free_memory=False)
    strategy = replicas(2)
    model = _batch_norm(strategy)
    CheckpointDirectory(tmp_path).restore(path, named_variables(model))
    local = strategy.experimental_local_results(model.layers[0].moving_mean.value)
    assert [v.numpy().tolist() for v in local] == [[3.0], [3.0]]


# What doesn't fit (pains.md 12)


def _chain(names):
    model = keras.Sequential([keras.layers.Dense(2, name=n) for n in names], name="chain")
    model.build((None, 2))
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.build(model.trainable_variables)
    return _everything(model, optimizer)


def test_a_model_that_differs_is_left_alone_and_all_differences_are_listed(tmp_path):
    path = CheckpointDirectory(tmp_path).save(1, _chain(["a", "b"]))
    keras.utils.clear_session(free_memory=False)
    other = _chain(["a", "new", "b"])
    before = {name: read(v) for name, v in other.items()}
    with pytest.raises(CheckpointError) as e:
        CheckpointDirectory(tmp_path).restore(path, other)
    assert "not in the checkpoint: model/chain/new/kernel" in str(e.value).replace("'", "")
    assert "optimizer/new/kernel/momentum" in str(e.value).replace("chain/", "")
    assert "load_weights" in str(e.value)
    for name, variable in other.items():
        np.testing.assert_array_equal(read(variable), before[name])


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
        "of another shape: a (saved [1], here [2])",
        "of another dtype: b (saved int32, here float32)",
        "only in the checkpoint: c0, c1",
        "... and 2 more",
    ):
        assert part in str(e.value)
    assert CheckpointDirectory(tmp_path).restore(path, {}, ignore=list(saved)) == {}


def test_automatic_layer_numbers_are_recognised(tmp_path):
    def build():
        model = keras.Sequential([keras.layers.Dense(1)])
        model.build((None, 1))
        return named_variables(model)

    path = CheckpointDirectory(tmp_path).save(1, build())
    with pytest.raises(CheckpointError, match="only in the numbers that Keras.*clear_session"):
        CheckpointDirectory(tmp_path).restore(path, build())


# Files


def test_steps_latest_and_delete(tmp_path):
    directory = CheckpointDirectory(tmp_path / "c")
    assert directory.steps() == [] and directory.latest() is None
    for step in (100, 20, 3):
        directory.save(step, {"v": tf.Variable(step)})
    assert directory.steps() == [3, 20, 100]
    assert directory.latest() == tmp_path / "c" / "step_00000100"
    directory.delete(100)
    assert directory.steps() == [3, 20] and len(list((tmp_path / "c").iterdir())) == 2


def test_saving_a_step_again_replaces_it(tmp_path):
    directory, variable = CheckpointDirectory(tmp_path), tf.Variable(1.0)
    directory.save(1, {"v": variable})
    variable.assign(2.0)
    directory.save(1, {"v": variable}, {"n": 2})
    variable.assign(0.0)
    assert directory.restore(directory.at(1), {"v": variable}) == {"n": 2}
    assert variable.numpy() == 2.0 and directory.steps() == [1]


def test_a_kill_while_writing_leaves_the_one_before(tmp_path, monkeypatch):
    directory, variables = CheckpointDirectory(tmp_path), {"v": tf.Variable(1.0)}
    directory.save(1, variables)

    def killed(*args):
        raise SystemExit

    monkeypatch.setattr(os, "replace", killed)  # everything is written but not yet in place
    with pytest.raises(SystemExit):
        directory.save(2, variables)
    monkeypatch.undo()
    assert directory.steps() == [1]
    directory.save(3, variables)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000001", "step_00000003"]


def test_values_that_are_not_finite_are_not_saved(tmp_path):
    directory = CheckpointDirectory(tmp_path)
    variables = {"good": tf.Variable(1.0), "bad": tf.Variable([1.0, float("nan")])}
    with pytest.raises(CheckpointError, match="step 2: 'bad' has NaN"):
        directory.save(2, variables)
    assert directory.steps() == []
    directory.save(2, variables, check_finite=False)


def test_what_is_not_a_checkpoint(tmp_path):
    (tmp_path / "step_00000001").mkdir()
    assert CheckpointDirectory(tmp_path).steps() == []
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        CheckpointDirectory(tmp_path).restore(tmp_path / "step_00000001", {})
    (tmp_path / "step_00000001" / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(CheckpointError, match="format 99"):
        CheckpointDirectory(tmp_path).restore(tmp_path / "step_00000001", {})
