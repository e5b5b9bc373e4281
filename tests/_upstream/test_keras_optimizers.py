"""Keras optimizers still behave as `tfloss._upstream.keras_optimizers` expects."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfloss import _upstream

pytestmark = pytest.mark.upstream


@pytest.mark.parametrize("wrap", [lambda o: o, keras.optimizers.LossScaleOptimizer])
def test_gradients_already_reduced_turns_off_the_sum(wrap, replicas):
    strategy = replicas(2)
    with strategy.scope():
        w = tf.Variable([0.0])
        optimizer = wrap(keras.optimizers.SGD(1.0))
        optimizer.build([w])

    def apply(reduced):
        with _upstream.gradients_already_reduced(optimizer):
            optimizer.apply([reduced], [w])

    gradient = tf.constant([1.0 * getattr(optimizer, "initial_scale", 1.0)])
    tf.function(lambda: strategy.run(apply, (gradient,)))()
    assert w.numpy() == pytest.approx(-1.0)


@pytest.mark.parametrize("count", [1, 2])
def test_updates_are_scaled_between_weight_decay_and_constraints(count, replicas):
    """2 decays by half to 1 and moves by -4, so by -5 in all; with factor 0.5 it is by -2.5."""
    strategy = replicas(count)
    with strategy.scope():
        weights = [keras.Variable(2.0), keras.Variable(2.0)]
        optimizer = keras.optimizers.SGD(1.0, weight_decay=0.5)
        optimizer.build(weights)
    weights[1].constraint = tf.abs
    gradients = [tf.constant(4.0)] * 2

    @tf.function
    def step():
        scaled = _upstream.scaled_updates(optimizer, lambda variable: 0.5)
        with scaled, _upstream.gradients_already_reduced(optimizer):
            strategy.run(lambda: optimizer.apply(gradients, weights))

    step()
    assert [w.numpy() for w in weights] == [-0.5, 0.5]


def test_exclusions_from_decay_are_added():
    weights = _two_weights()
    optimizer = keras.optimizers.SGD(0.0, weight_decay=0.5)
    optimizer.build(weights)
    assert optimizer._use_weight_decay(weights[0])
    _upstream.exclude_from_weight_decay(optimizer, weights[:1])
    _upstream.exclude_from_weight_decay(optimizer, weights[1:])
    assert not any(map(optimizer._use_weight_decay, weights))


def _two_weights():
    return [keras.Variable(0.0, name="one"), keras.Variable([0.0], name="two")]


def test_an_optimizer_keeps_the_variables_it_was_built_for_in_order():
    variables = _two_weights()
    optimizer = keras.optimizers.Adam()
    assert _upstream.optimizer_built_for(optimizer) == []
    optimizer.build(variables)
    found = _upstream.optimizer_built_for(optimizer)
    assert [id(v) for v in found] == [id(v) for v in variables]


def test_an_optimizer_keeps_its_slots_in_the_order_of_its_variables():
    variables = _two_weights()
    optimizer = keras.optimizers.Nadam()
    optimizer.build(variables)
    slots = _upstream.optimizer_slots(optimizer)
    of = {id(v): slots.get(id(v)) for v in optimizer.variables}
    assert of[id(optimizer.iterations)] == ("_iterations", None)
    found = [known for known in of.values() if known is not None and known[1] is not None]
    assert sorted((attribute, variable.name) for attribute, variable in found) == [
        ("_momentums", "one"),
        ("_momentums", "two"),
        ("_velocities", "one"),
        ("_velocities", "two"),
    ]
    # What a gradient does shows that the order is the one in which Keras uses them.
    optimizer.apply([tf.constant(0.0), tf.constant([1.0])], variables)
    moved = [known for v in optimizer.variables if (known := of[id(v)]) and np.any(v.numpy() != 0)]
    assert {v.name for _, v in moved if v is not None} == {"two"}


def test_adams_moments_are_found_by_the_variable():
    optimizer = keras.optimizers.Adam(0.1, beta_1=0.5, beta_2=0.75)
    weights = [keras.Variable([2.0]), keras.Variable([3.0])]
    optimizer.build(weights)
    optimizer.apply([tf.constant([2.0]), tf.constant([4.0])], weights)
    first, second = _upstream.adam_moments(optimizer, weights[1].value)
    assert (first.numpy().tolist(), second.numpy().tolist()) == ([2.0], [4.0])
    assert isinstance(first, tf.Variable) and first.handle is not None


def test_every_option_of_an_optimizer_is_applied_or_refused():
    """`tfloss.optimizers.groups` must refuse an option that Keras applies outside of `apply`."""
    config = keras.optimizers.Optimizer(0.1).get_config()
    applied = {"name", "learning_rate", "weight_decay", "clipnorm", "clipvalue", "global_clipnorm"}
    refused = {"use_ema", "loss_scale_factor", "gradient_accumulation_steps"}
    only_with_use_ema = {"ema_momentum", "ema_overwrite_frequency"}
    assert set(config) == applied | refused | only_with_use_ema


def test_the_function_behind_a_learning_rate():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    for rate in (schedule, lambda: 0.1):
        assert _upstream.learning_rate_function(keras.optimizers.SGD(rate)) is rate
    assert _upstream.learning_rate_function(keras.optimizers.SGD(0.1)) is None
