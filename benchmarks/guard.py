"""What it costs to check, at every step, that the losses are finite.

    python benchmarks/guard.py

Steps per second with the guard (an assertion that the update depends on), without it, and
with the obvious alternative, a `tf.cond` around the update; in turn, medians of ratios.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf
from _timing import interleaved, ratio

import tfloss

STEPS = 100


class Model(keras.Model):
    """`depth` x (Dense 64, LayerNormalization): 4 variables each."""

    def __init__(self, depth: int):
        super().__init__()
        self.net = keras.Sequential(
            [make() for _ in range(depth) for make in (_dense, keras.layers.LayerNormalization)]
        )

    def call(self, batch, training=False):
        return tf.reduce_mean(self.net(batch["x"]) ** 2)


def _dense():
    return keras.layers.Dense(64)


class Conditional(tfloss.TrainStep):
    """The alternative: forward and backward pass, then the update inside a `tf.cond`."""

    def step(self, batch):
        variables = self.model.trainable_variables

        def gradients(batch):
            with tf.GradientTape() as tape:
                loss = self.forward(batch)
            return loss, tape.gradient(loss, [v.value for v in variables])

        loss, grads = tf.function(gradients, jit_compile=self.jit, autograph=False)(batch)

        def update():
            self.optimizer.apply(grads, variables)
            return True

        tf.cond(tf.math.is_finite(loss), update, lambda: False)
        report = self._current_report()
        report.totals.append(loss)
        report.updates.append(loss)
        return {"loss": loss}


def main() -> None:
    data = tf.data.Dataset.from_tensors({"x": tf.random.normal([32, 64])}).repeat()
    options = tf.data.Options()
    options.autotune.enabled = False
    data = data.with_options(options)
    for depth, jit in ((1, False), (40, False), (40, True)):
        calls = {}
        for name, kind, guard in (
            ("no check", tfloss.TrainStep, False),
            ("guard", tfloss.TrainStep, True),
            ("tf.cond", Conditional, False),
        ):
            step = kind(Model(depth), keras.optimizers.Adam(), jit=jit)
            step.build(data.element_spec)
            engine, iterator = tfloss.Engine(step, guard=guard), iter(data)
            calls[name] = lambda e=engine, i=iterator: e.run(i, STEPS)
        seconds = interleaved(calls, rounds=9)
        print(f"{4 * depth} variables, jit={jit}: {STEPS / min(seconds['no check']):.0f} steps/s")
        for name in ("guard", "tf.cond"):
            median, low, high = ratio(seconds, name, "no check")
            print(f"  step time with {name}: x {median:.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
