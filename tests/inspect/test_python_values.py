"""Which Python values code reads, and which of them have changed."""

import types

import keras
import numpy as np
import tensorflow as tf

from tfloss.inspect.python_values import PythonValues, names_read

GLOBAL = {"rate": 0.1}


class Layer(keras.Layer):
    def __init__(self):
        super().__init__(name="layer")
        self.read, self.unread, self.counted, self.by_method = 0.5, 0.5, 0, [1, 2]
        self.array, self.weight_list = np.zeros(3), [tf.Variable(1.0)]

    def helper(self, x):
        return x * sum(self.by_method)

    def call(self, x):
        self.counted += 1
        return self.helper(x) * self.read * self.array[0]


def test_attributes_that_a_call_reads_are_known_and_others_are_not():
    model = keras.Sequential([Layer(), keras.layers.Dropout(0.5, name="drop")], name="model")
    values = PythonValues()
    values.add_layers(model)
    layer, drop = model.layers
    layer.unread, layer.counted = 0.7, 5
    assert values.changed() == []
    layer.read, drop.rate = 0.25, 0.1
    layer.by_method.append(3)
    found = {one.label: (one.before, one.now) for one in values.changed()}
    assert found == {
        "'read' of layer 'model/layer'": (0.5, 0.25),
        "'by_method' of layer 'model/layer'": ([1, 2], [1, 2, 3]),
        "'rate' of layer 'model/drop'": (0.5, 0.1),
    }
    layer.read, drop.rate = 0.5, 0.5
    layer.by_method.pop()
    assert values.changed() == []


def test_variables_of_functions_and_attributes_of_objects_are_known():
    beta, config = 0.1, types.SimpleNamespace(gamma=1.0, delta=1.0)
    values = PythonValues()
    values.add_function(lambda step: beta * config.gamma * GLOBAL["rate"] * step)
    values.add_function(keras.optimizers.schedules.ExponentialDecay(0.5, 10, 0.9), "the rate")
    config.delta = 2.0
    assert values.changed() == []
    beta, config.gamma, GLOBAL["rate"] = 0.2, 3.0, 0.3
    try:
        found = {one.label: (one.before, one.now) for one in values.changed()}
    finally:
        GLOBAL["rate"] = 0.1
    assert found == {
        "'beta'": (0.1, 0.2),
        "'gamma' of 'config'": (1.0, 3.0),
        "'GLOBAL'": ({"rate": 0.1}, {"rate": 0.3}),
    }


def test_methods_of_an_object_are_followed():
    class Step:
        def __init__(self):
            self.noise, self.other = 1.0, 1.0

        def step(self):
            return self.inner()

        def inner(self):
            return self.noise

    step, values = Step(), PythonValues()
    values.add_methods(step, ["step", "missing"], "the step")
    step.noise = step.other = 2.0
    assert [one.label for one in values.changed()] == ["'noise' of the step"]
    assert names_read(Step.step) == ["inner"] and names_read(len) == []
