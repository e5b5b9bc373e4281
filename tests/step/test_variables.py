"""Variables exist before the first step; those that appear later are refused by name."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.toys import Line, make_step, rows
from tfloss.engine.engine import Engine
from tfloss.errors import ModelError
from tfloss.forward.context import current_context
from tfloss.optimizers.groups import Group
from tfloss.step.random_states import STRIDE, process_variables
from tfloss.step.train_step import TrainStep
from tfloss.step.variables import Variables, forward_state, replica_statistics, skipped_state

DATA = rows([1.0, 2.0, 3.0, 4.0], 4)


# Built before the first step


class _Unbuilt(keras.Model):
    def __init__(self):
        super().__init__(name="unbuilt")
        self.dense = keras.layers.Dense(3)
        self.drop = keras.layers.Dropout(0.5, seed=1)

    def call(self, batch, training=False):
        return self.drop(self.dense(batch), training=training)


@pytest.mark.promise(20)
@pytest.mark.parametrize("count", [1, 2])
def test_model_and_slots_exist_before_the_first_step(count, replicas):
    strategy = replicas(count)
    with strategy.scope():
        model = _Unbuilt()
        group = Group(keras.optimizers.SGD(0.1, momentum=0.9))
    assert model.trainable_variables == [] and not group.optimizer.built

    variables = Variables(model, {"optimizer": group}, strategy)
    variables.build(tf.TensorSpec([4, 2]), lambda batch: model(batch, training=True))

    assert [v.shape for v in model.trainable_variables] == [(2, 3), (3,)]
    slots = {v.path.rpartition("/")[2]: tuple(v.shape) for v in group.optimizer.variables}
    assert slots.pop("iteration") == slots.pop("learning_rate") == ()
    assert sorted(slots.values()) == [(2, 3), (3,)]
    states = strategy.experimental_local_results(model.drop.seed_generator.state.value)
    assert [one.numpy().tolist() for one in states] == [[1, 0], [1 + STRIDE, 0]][:count]

    kernel = model.dense.kernel.numpy()
    variables.build(tf.TensorSpec([4, 2]), lambda batch: pytest.fail("It is built already."))
    np.testing.assert_array_equal(model.dense.kernel.numpy(), kernel)
    states = strategy.experimental_local_results(model.drop.seed_generator.state.value)
    assert [one.numpy().tolist() for one in states] == [[1, 0], [1 + STRIDE, 0]][:count]


def test_a_layer_that_is_unfrozen_later_gets_its_slots():
    model = keras.Sequential([keras.layers.Dense(1, name="a"), keras.layers.Dense(1, name="b")])
    model.build([None, 2])
    model.layers[0].trainable = False
    group = Group(keras.optimizers.SGD(0.1, momentum=0.9))
    variables = Variables(model, {"optimizer": group}, tf.distribute.get_strategy())

    variables.build(tf.TensorSpec([4, 2]), model)
    assert len(group.optimizer.variables) == 2 + 2
    model.layers[0].trainable = True
    variables.build(tf.TensorSpec([4, 2]), model)
    assert len(group.optimizer.variables) == 2 + 4


def test_a_forward_pass_that_does_not_build_the_model_is_refused():
    model = keras.Sequential([keras.layers.Dense(1)], name="unused")
    variables = Variables(
        model, {"optimizer": Group(keras.optimizers.SGD())}, tf.distribute.get_strategy()
    )

    with pytest.raises(ModelError, match="Calling 'unused' did not build it"):
        variables.build(tf.TensorSpec([4, 2]), tf.reduce_mean)


@pytest.mark.filterwarnings("ignore:`build:UserWarning")  # Keras sees the unbuilt layer too
def test_a_variable_that_appears_after_the_build_is_refused_by_its_path():
    model = Line()
    model.late = keras.layers.Dense(1, name="late")
    variables = Variables(
        model, {"optimizer": Group(keras.optimizers.SGD())}, tf.distribute.get_strategy()
    )
    variables.check_no_new()
    variables.build(DATA.element_spec, model)
    variables.check_no_new()

    model.late.build([None, 1])
    with pytest.raises(
        ModelError, match="created variables: late/kernel, late/bias.*before the first step"
    ):
        variables.check_no_new()


def test_building_computes_nothing_and_changes_no_state():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.bn = keras.layers.BatchNormalization()
            self.drop = keras.layers.Dropout(0.5, seed=3)
            self.out = keras.layers.Dense(1)

        def call(self, batch, training=False):
            x = self.drop(self.bn(batch["x"], training=training), training=training)
            return tf.reduce_mean(self.out(x)) if training else x

    train_step, _ = make_step(Model, rows(np.ones([4, 2]), 4))
    model = train_step.model
    assert model.bn.moving_mean.numpy().tolist() == [0.0, 0.0]
    assert model.drop.seed_generator.state.numpy().tolist() == [3, 0]
    assert train_step.optimizers["optimizer"].iterations.numpy() == 0


def test_an_error_in_the_models_call_is_shown_as_it_is():
    class Model(Line):
        def call(self, batch, training=False):
            return {"a": tf.reduce_mean(self.w * batch["labels"])}

    with pytest.raises(KeyError, match="labels"):
        make_step(Model, DATA)


@pytest.mark.promise(20)
@pytest.mark.parametrize("what", ["model", "optimizer"])
def test_a_model_or_optimizer_of_another_scope_is_refused(what, replicas):
    strategy = replicas(2)
    model, optimizer = Line(), keras.optimizers.SGD(0.1)
    with strategy.scope():
        model = Line() if what == "optimizer" else model
        optimizer = keras.optimizers.SGD(0.1) if what == "model" else optimizer
        train_step = TrainStep(model, optimizer)
    with pytest.raises(ModelError, match=f"{what}.* was created outside of the scope"):
        train_step.build(DATA.element_spec)


def test_a_model_without_trainable_variables_is_refused():
    class Model(keras.Model):
        def call(self, batch, training=False):
            return tf.reduce_mean(batch["x"])

    with pytest.raises(ModelError, match="nothing to train"):
        make_step(Model, DATA)


@pytest.mark.promise(20)
@pytest.mark.filterwarnings("ignore:`build:UserWarning")
def test_variables_made_inside_the_step_are_refused():
    class Late(Line):
        def __init__(self):
            super().__init__()
            self.late = keras.layers.Dense(1, name="late")

        def call(self, batch, training=False):
            if current_context() is not None:  # not while the model is built
                self.late(tf.zeros([1, 1]))
            return super().call(batch, training)

    train_step, iterator = make_step(Late, DATA)
    with pytest.raises(ModelError, match="created variables: line/late/kernel, line/late/bias"):
        Engine(train_step).run(iterator, 1)
    assert train_step.model.w.numpy() == 1.0 and train_step.counter.numpy() == 0


# What a forward pass changes


def test_the_states_of_a_model_by_who_changes_them(replicas):
    class Model(Line):
        def __init__(self):
            super().__init__()
            self.norm = keras.layers.BatchNormalization(name="norm")
            self.norm.build([None, 1])
            self.drop = keras.layers.Dropout(0.5, seed=1, name="drop")
            self.mean = keras.metrics.Mean(name="metric")
            options = {"shape": (), "initializer": "zeros", "trainable": False}
            self.count = self.add_weight(name="count", dtype="int32", **options)
            self.first = self.add_weight(name="first", aggregation="only_first_replica", **options)
            self.added = self.add_weight(name="added", aggregation="sum", **options)
            self.raw = [tf.Variable(0.0, trainable=False)]
            mirrored = tf.VariableAggregation.SUM
            self.raw_sum = tf.Variable(0.0, trainable=False, aggregation=mirrored)
            self.generator = tf.random.Generator.from_seed(1)

    def names(states):
        found = {id(v.value): v.path for v in (*model.variables, *model.metrics_variables)}
        found |= {id(model.raw[0]): "raw", id(model.raw_sum): "raw_sum"}
        found[id(model.generator.state)] = "generator"
        for one in process_variables(strategy):
            found[id(one.value if isinstance(one, keras.Variable) else one)] = "of the process"
        return {found[id(state)].rpartition("line/")[2] for state in states}

    strategy = replicas(2)
    with strategy.scope():
        model = Model()
    statistics = {"norm/moving_mean", "norm/moving_variance"}
    assert names(replica_statistics(model)) == statistics
    metric = {v.path for v in model.metrics_variables}
    restored = statistics | metric | {"count", "first", "raw"}
    assert names(skipped_state(model)) == restored
    seed = {v.path.rpartition("line/")[2] for v in model.non_trainable_variables} - restored
    assert len(seed) == 2 and "added" in seed
    others = {"raw_sum", "generator", "of the process"}
    assert names(forward_state(model, strategy)) == restored | seed | others
