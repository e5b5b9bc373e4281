import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.checkpoint.nets import CONTAINERS, built, chain
from tfloss import _upstream
from tfloss.checkpoint import named_optimizer_variables, named_variables, random_states

OPTIMIZERS = {
    name: cls
    for name, cls in vars(keras.optimizers).items()
    if inspect.isclass(cls)
    and issubclass(cls, keras.optimizers.Optimizer)
    and name not in ("Optimizer", "LossScaleOptimizer", "MultiOptimizer")
}

# Models


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_variable_has_a_name_whatever_holds_its_layer(container):
    model, _ = built(container)
    layer = {"dense/kernel", "dense/bias", "drop/seed_generator"}
    layer |= {f"bn/{n}" for n in ("gamma", "beta", "moving_mean", "moving_variance")}
    raw = {"count", "queues/left/0", "queues/right", "pair/0/a", "pair/1"}
    expected = {f"net/{block}/{name}" for block in "xy" for name in layer}
    assert set(named_variables(model)) == expected | {f"net/{name}" for name in raw}


def test_sequential_and_functional_models():
    names = set(named_variables(built("sequential")[0]))
    assert {"net/x_dense/kernel", "net/y_bn/moving_mean", "net/y_drop/seed_generator"} < names
    assert len(names) == 14
    names = set(named_variables(built("functional")[0]))  # Keras's paths there have no model
    assert {"x_dense/kernel", "y_bn/moving_mean", "net/y_drop/seed_generator"} < names
    assert len(names) == 14


def test_names_are_the_same_eagerly_and_in_a_graph_and_after_other_models():
    first = list(named_variables(built("nested")[0]))
    keras.layers.Dropout(0.5)  # counts as one more seed generator, for Keras's own path
    second = list(named_variables(built("nested")[0]))
    model, _ = built("nested")
    tf.function(lambda x: model(x, training=True))(tf.ones([2, 3]))
    assert first == second == list(named_variables(model))


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
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build(model.trainable_variables)
    slots = named_optimizer_variables(optimizer)
    assert slots["m/d/kernel/momentum"] is optimizer.momentums[0]
    assert slots["m/d/kernel/momentum#1"] is optimizer.momentums[1]


def test_metrics_generators_and_states_that_a_layer_holds():
    class Layer(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="noisy")
            self.seeds = [keras.random.SeedGenerator(1), keras.random.SeedGenerator(2)]
            self.random = tf.random.Generator.from_seed(3)
            self.mean = keras.metrics.Mean(name="mean")

        def call(self, x):
            return x

    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="m")
            self.layers_by_name = {"a": Layer()}

        def call(self, x):
            return self.layers_by_name["a"](x)

    model = Model()
    model(tf.ones([1]))
    names = named_variables(model)
    assert set(names) == {
        "m/noisy/seed_generator",
        "m/noisy/seed_generator#1",
        "m/noisy/random",
        "mean/total",
        "mean/count",
    }
    assert names["m/noisy/random"] is model.layers_by_name["a"].random.state
    assert random_states(model) == {n for n in names if n.startswith("m/noisy/")}


# Optimizers


def test_slots_are_named_after_their_variable():
    model, optimizer = built()
    paths = [v.path for v in model.trainable_variables]
    slots = {f"{path}/{slot}" for path in paths for slot in ("momentum", "velocity")}
    assert set(named_optimizer_variables(optimizer)) == slots | {"iteration", "learning_rate"}


@pytest.mark.upstream
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_of_keras_can_be_extended(name):
    """As if built for all from the start, but that old slots keep their values."""
    model = keras.Sequential([keras.layers.Dense(2, name=n) for n in "ab"], name="chain")
    model.build((None, 2))
    first, every = model.trainable_variables[2:], model.trainable_variables
    whole, grown = OPTIMIZERS[name](), OPTIMIZERS[name]()
    whole.build(every)
    grown.build(first)
    grown.apply([tf.ones_like(v.value) for v in first], first)
    before = {k: v.numpy() for k, v in named_optimizer_variables(grown).items()}
    _upstream.extend_optimizer(grown, every)
    after = named_optimizer_variables(grown)
    assert set(after) == set(named_optimizer_variables(whole))
    for key, value in before.items():
        np.testing.assert_array_equal(after[key].numpy(), value, err_msg=key)
    old = every[0].numpy()
    grown.apply([tf.ones_like(v.value) for v in every], every)
    assert (every[0].numpy() != old).all()


@pytest.mark.upstream
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_of_keras_has_named_slots(name):
    """Fails if Keras no longer keeps slots in lists beside `_trainable_variables`."""
    optimizer = OPTIMIZERS[name]()
    variables = chain("a", "b", optimizer=optimizer)
    names = [n.removeprefix("optimizer/") for n in variables if n.startswith("optimizer/")]
    others = {"iteration", "learning_rate"} | ({"u_product"} if name == "Nadam" else set())
    slots = [n for n in names if n not in others]
    assert len(names) == len(optimizer.variables) and not [n for n in names if "#" in n]
    assert all(n.startswith(("chain/a/", "chain/b/")) for n in slots), slots
    if name != "SGD":
        assert any(n.startswith("chain/b/bias/") for n in slots)


def test_slots_with_half_a_name_are_those_of_their_variable():
    optimizer = keras.optimizers.Adafactor()
    variables = chain("a", "b", optimizer=optimizer)
    assert variables["optimizer/chain/a/kernel/r"] is optimizer._r[0]
    assert variables["optimizer/chain/b/kernel/r"] is optimizer._r[2]
    assert variables["optimizer/chain/b/kernel/c"] is optimizer._c[2]


def test_paths_that_differ_only_in_a_separator():
    class Outer(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="a")
            self.inner = keras.layers.Dense(1, name="b", use_bias=False)

        def call(self, x):
            return self.inner(x)

    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="m")
            self.one = keras.layers.Dense(1, name="a_b", use_bias=False)
            self.two = Outer()

        def call(self, x):
            return self.one(x) + self.two(x)

    model = Model()
    model(tf.ones([1, 1]))
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build(model.trainable_variables)
    names = named_optimizer_variables(optimizer)
    for variable, slot in zip(model.trainable_variables, optimizer.momentums, strict=True):
        assert names[f"{variable.path}/momentum"] is slot


def test_averages_and_accumulators_are_slots_too():
    optimizer = keras.optimizers.SGD(0.1, use_ema=True, gradient_accumulation_steps=2)
    names = set(chain("a", optimizer=optimizer))
    kernel = "optimizer/chain/a/kernel"
    assert {f"{kernel}/average", f"{kernel}/gradient_accumulator"} < names


def test_freezing_a_layer_later_renames_nothing():
    model, optimizer = built()
    before = list(named_optimizer_variables(optimizer))
    model.blocks[0].trainable = False
    assert list(named_optimizer_variables(optimizer)) == before


def test_two_optimizers_of_one_model():
    model, _ = built()
    one, two = keras.optimizers.Adafactor(), keras.optimizers.Adafactor()
    one.build(model.trainable_variables[:4])
    two.build(model.trainable_variables[4:])
    slots = named_optimizer_variables(two)
    assert slots["net/y/dense/kernel/r"] is two._r[0]
    assert not any(name.startswith("net/x") for name in slots)


def test_what_counts_of_a_loss_scale_optimizer_is_the_inner_one():
    inner = keras.optimizers.Adam(0.25)
    variables = chain("a", optimizer=keras.optimizers.LossScaleOptimizer(inner))
    assert float(variables["optimizer/learning_rate"]) == 0.25
    assert variables["optimizer/iteration"] is inner.iterations
    plain = set(chain("a"))
    assert plain < set(variables)  # so that turning it on or off later moves nothing
    assert {n for n in set(variables) - plain} == {
        f"optimizer/loss_scale/{n}"
        for n in ("iteration", "learning_rate", "step_counter", "dynamic_scale")
    }


@pytest.mark.skipif(not hasattr(keras.optimizers, "MultiOptimizer"), reason="Keras has none yet")
def test_several_optimizers_in_one():
    one, two = keras.optimizers.Adam(0.25), keras.optimizers.SGD(0.5, momentum=0.9)
    both = keras.optimizers.MultiOptimizer(lambda v: one if "/a/" in v.path else two)
    names = chain("a", "b", optimizer=both)
    assert float(names["optimizer/optimizers/0/learning_rate"]) == 0.25
    assert float(names["optimizer/optimizers/1/learning_rate"]) == 0.5
    assert {"optimizer/chain/a/kernel/velocity", "optimizer/chain/b/kernel/momentum"} < set(names)
    assert not [n for n in names if "#" in n]


def test_an_optimizer_that_does_not_say_what_it_was_built_for():
    class Own:
        variables = [keras.Variable(0.0, name="net_x_dense_kernel_speed"), keras.Variable(1.0)]

    names = list(named_optimizer_variables(Own()))  # type: ignore[arg-type]
    assert names[0] == "net_x_dense_kernel_speed" and len(names) == 2


def test_an_optimizer_of_ones_own_that_keeps_its_slots_in_a_dict():
    class Own(keras.optimizers.Optimizer):
        def build(self, variables):
            super().build(variables)
            self.speeds = {v.path: self.add_variable_from_reference(v, "speed") for v in variables}

    names = chain("a", optimizer=Own(0.1))
    assert {"optimizer/chain/a/kernel/speed", "optimizer/chain/a/bias/speed"} < set(names)


@pytest.mark.skipif(not hasattr(keras.optimizers, "MultiOptimizer"), reason="Keras has none yet")
def test_a_loss_scale_around_several_optimizers():
    one, two = keras.optimizers.Adam(0.25), keras.optimizers.Adafactor(0.5)
    both = keras.optimizers.MultiOptimizer(lambda v: one if "/a/" in v.path else two)
    names = chain("a", "b", optimizer=keras.optimizers.LossScaleOptimizer(both))
    assert {"optimizer/chain/a/kernel/velocity", "optimizer/chain/b/kernel/r"} < set(names)
    assert "optimizer/loss_scale/dynamic_scale" in names
    assert not [n for n in names if "#" in n]
