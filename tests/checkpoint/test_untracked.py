import keras
import tensorflow as tf

from tfloss.checkpoint.untracked import untracked, variable_of


def test_what_keras_does_not_track():
    class Layer(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="l")
            self.raw = {"a": [tf.Variable(1.0)]}
            self.generator = tf.random.Generator.from_seed(1)
            self.table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, 0)
            self.module = tf.Module()
            self.module.inner = tf.Variable(2.0)
            self.module.more = {"b": (tf.Variable(3.0),)}  # in a wrapper, which is no `dict`
            self.lookup = keras.layers.StringLookup(name="words")  # counts while it adapts

    layer = Layer()
    found = dict(untracked(layer))
    assert list(found) == [
        "l/raw/a/0",
        "l/generator",
        "l/table",
        "l/module/inner",
        "l/module/more/b/0",
    ]
    variables = [variable_of(one) for one in found.values()]
    assert variables[0] is layer.raw["a"][0] and variables[1] is layer.generator.state
    assert variables[2] is None and variables[3] is layer.module.inner


def test_the_states_of_a_stateful_rnn():
    layer = keras.layers.LSTM(2, stateful=True, name="l")
    layer.build((3, 4, 5))
    found = {name: value for name, value in untracked(layer) if name.startswith("l/states")}
    assert list(found) == ["l/states/0", "l/states/1"]
    assert found["l/states/0"] is layer.states[0]
