"""Models whose layers are held in every way there is."""

import keras
import numpy as np
import tensorflow as tf

from tfloss.checkpoint import named_optimizer_variables, named_variables, read


class Block(keras.layers.Layer):
    """Dense, BatchNormalization and Dropout, in a list."""

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


class Net(keras.Model):
    """Two blocks in a container, and raw variables."""

    def __init__(self, container):
        super().__init__(name="net")
        blocks = [Block("x"), Block("y")]
        if container == "list":
            self.blocks = blocks
        elif container == "dict":
            self.blocks = dict(zip("ab", blocks, strict=True))
        elif container == "nested":
            self.blocks = [{"deep": [blocks[0]]}, (blocks[1],)]
        elif container == "tuple":
            self.blocks = tuple(blocks)
        else:
            self.first, self.second = blocks
        self.container = container
        self.count = tf.Variable(0, name="count")
        self.queues = {"right": tf.Variable(4.0), "left": [tf.Variable([1.0, 2.0])]}
        self.pair = ({"a": tf.Variable(5.0)}, tf.Variable(6.0))

    def call(self, x, training=False):
        if self.container == "list":
            blocks = self.blocks
        elif self.container == "dict":
            blocks = self.blocks.values()
        elif self.container == "nested":
            blocks = [self.blocks[0]["deep"][0], self.blocks[1][0]]
        elif self.container == "tuple":
            blocks = self.blocks
        else:
            blocks = [self.first, self.second]
        for block in blocks:
            x = block(x, training=training)
        return x


CONTAINERS = ("list", "dict", "nested", "tuple", "attribute")


def _stack(name):
    return [
        keras.layers.Dense(3, name=f"{name}_dense"),
        keras.layers.BatchNormalization(name=f"{name}_bn"),
        keras.layers.Dropout(0.5, name=f"{name}_drop"),
    ]


def built(kind="list", strategy=None):
    """`(model, optimizer)`, both built; kind: one of CONTAINERS, "sequential", "functional"."""
    keras.utils.clear_session(free_memory=False)
    with (strategy or tf.distribute.get_strategy()).scope():
        return _built(kind)


def _built(kind):
    if kind == "sequential":
        model = keras.Sequential([*_stack("x"), *_stack("y")], name="net")
    elif kind == "functional":
        x = inputs = keras.Input((3,))
        for layer in [*_stack("x"), *_stack("y")]:
            x = layer(x)
        model = keras.Model(inputs, x, name="net")
    else:
        model = Net(kind)
    model(tf.ones([2, 3]))
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.build(model.trainable_variables)
    return model, optimizer


def chain(*names, optimizer=None):
    """`{name: variable}` of Dense layers with these names in a row, and of their optimizer."""
    keras.utils.clear_session(free_memory=False)
    model = keras.Sequential([keras.layers.Dense(2, name=n) for n in names], name="chain")
    model.build((None, 2))
    optimizer = optimizer or keras.optimizers.Adam(0.1)
    optimizer.build(model.trainable_variables)
    return everything(model, optimizer)


def everything(model, optimizer):
    """`{name: variable}` of a model and its optimizer, as a Trainer saves them."""
    slots = named_optimizer_variables(optimizer)
    return {f"model/{k}": v for k, v in named_variables(model).items()} | {
        f"optimizer/{k}": v for k, v in slots.items()
    }


def scramble(variables):
    """Gives every variable another value, of its own."""
    for i, variable in enumerate(variables.values()):
        value = read(variable)
        variable.assign(np.full(value.shape, i + 2).astype(value.dtype))
