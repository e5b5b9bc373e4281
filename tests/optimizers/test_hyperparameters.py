"""Which attributes of an optimizer are its hyperparameters."""

import keras
import tensorflow as tf

from tfloss.optimizers.hyperparameters import numbers, scalar_variables, signature


def test_numbers_and_variables_are_told_apart():
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build([keras.Variable([1.0, 2.0])])
    found = numbers(optimizer)
    assert found["momentum"] == 0.9 and found["weight_decay"] is None
    assert not {"built", "name", "learning_rate"} & set(found)
    assert list(scalar_variables(optimizer)) == ["learning_rate"]
    optimizer.weight_decay = tf.Variable(0.5)
    assert set(scalar_variables(optimizer)) == {"learning_rate", "weight_decay"}
    assert "weight_decay" not in numbers(optimizer)


def test_a_schedule_is_no_number():
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    optimizer = keras.optimizers.Adam(schedule)
    assert scalar_variables(optimizer) == {}
    assert numbers(optimizer)["beta_1"] == 0.9


def test_the_signature_changes_with_a_number():
    optimizers = {"a": keras.optimizers.SGD(0.1), "b": keras.optimizers.SGD(0.1)}
    before = signature(optimizers)
    assert signature(optimizers) == before
    optimizers["b"].learning_rate = 0.2  # a variable, which the step reads
    assert signature(optimizers) == before
    optimizers["b"].momentum = 0.5
    assert signature(optimizers) != before
