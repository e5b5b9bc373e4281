"""Keras on JAX: `fit`, and a `lax.scan` loop by hand. They run without TensorFlow.

Install `jax` and `keras` in an environment of their own; tfloss doesn't need them.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"

import jax
import jax.numpy as jnp
import keras
import numpy as np
from nets import CLASSIFIERS, Arrays
from record import Record


def batches(arrays: Arrays, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields shuffled batches without end."""
    rng, count = np.random.default_rng(1), len(arrays["x"])
    while True:
        order = rng.permutation(count)
        for i in range(0, count - size + 1, size):
            some = order[i : i + size]
            yield arrays["x"][some], arrays["y"][some]


class JaxContender:
    """A net, its optimizer and its data on JAX."""

    def __init__(self, name: str):
        make, arrays, size, self.loop = CLASSIFIERS[name]
        self.model, self.optimizer = make(), keras.optimizers.Adam(1e-3)
        self.loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.data = batches(arrays(), size)

    def save(self, path: Path) -> None:
        """Saves weights and optimizer."""
        self.model.save(path / "model.keras")

    def note(self) -> str:
        """Returns JAX's version."""
        return f"jax {jax.__version__}"


class JaxFit(JaxContender):
    """`fit`, whose step is compiled by default."""

    def __init__(self, name: str, **options: Any):
        super().__init__(name)
        self.model.compile(self.optimizer, self.loss, **options)

    def train(self, steps: int, record: Record) -> None:
        """Trains from the first step."""
        per_call = self.model.steps_per_execution

        class Points(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                record.stop_if_enough(batch + 1)

        steps -= steps % per_call
        self.model.fit(self.data, steps_per_epoch=steps, epochs=1, verbose=0, callbacks=[Points()])


class JaxScan(JaxContender):
    """Many steps over a stacked block of batches, as one program."""

    def train(self, steps: int, record: Record) -> None:
        """Trains from the first step."""
        model, optimizer = self.model, self.optimizer
        optimizer.build(model.trainable_variables)

        def forward(weights, others, x, y):
            logits, others = model.stateless_call(weights, others, x, training=True)
            return self.loss(y, logits), others

        gradient = jax.value_and_grad(forward, has_aux=True)

        def step(state, batch):
            weights, others, slots = state
            (loss, others), grads = gradient(weights, others, *batch)
            weights, slots = optimizer.stateless_apply(slots, grads, weights)
            return (weights, others, slots), loss

        @jax.jit
        def many(state, block):
            state, losses = jax.lax.scan(step, state, block)
            return state, jnp.mean(losses)

        def block():
            return tuple(
                np.stack(part)
                for part in zip(*(next(self.data) for _ in range(self.loop)), strict=True)
            )

        variables = model.trainable_variables, model.non_trainable_variables, optimizer.variables
        self.state = tuple([v.value for v in part] for part in variables)
        ready = block()
        for done in range(self.loop, steps + 1, self.loop):
            self.state, loss = many(self.state, ready)
            ready = block()  # while JAX computes
            float(loss)
            record.stop_if_enough(done)

    def save(self, path: Path) -> None:
        """Saves weights and optimizer."""
        model, optimizer = self.model, self.optimizer
        variables = model.trainable_variables, model.non_trainable_variables, optimizer.variables
        for part, values in zip(variables, self.state, strict=True):
            for variable, value in zip(part, values, strict=True):
                variable.assign(value)
        model.compile(optimizer)
        super().save(path)


JAX_CONTENDERS = {
    "Keras on JAX, fit": JaxFit,
    "Keras on JAX, lax.scan by hand": JaxScan,
}
