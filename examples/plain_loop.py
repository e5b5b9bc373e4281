"""Training without `tfloss.Trainer`: a custom loop, made of the same parts.

    python examples/plain_loop.py

For loops that `Trainer` can't do. `TrainStep` makes one update; everything else here is plain
TensorFlow. `tests/equivalence/test_levels.py` shows that the weights are identical in the end.
"""

import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfloss


class Regression(keras.Model):
    """Fits a line to noisy points. It reports the error and a penalty on the slope."""

    def __init__(self):
        super().__init__(name="regression")
        self.dense = keras.layers.Dense(1)

    def call(self, batch: Mapping[str, tf.Tensor], training: bool = False) -> dict[str, tf.Tensor]:
        """Returns the losses in training, and predictions in inference."""
        y = self.dense(batch["x"])
        if training:
            error = tf.reduce_mean((y - batch["y"]) ** 2)
            tfloss.summary.scalar("slope", self.dense.kernel[0, 0])
            return {"error": error, "penalty": 1e-3 * tf.reduce_sum(self.dense.kernel**2)}
        return {"y": y}


def points(batch_size: int = 16) -> tf.data.Dataset:
    """Makes endless batches of points y = 3 x + 1 with noise.

    Args:
      batch_size: The number of points in a batch.

    Returns:
      Batches `{"x": float32 [n, 1], "y": float32 [n, 1]}`.
    """
    random = np.random.RandomState(0)
    x = random.uniform(-1, 1, [256, 1]).astype(np.float32)
    y = 3 * x + 1 + 0.1 * random.randn(256, 1).astype(np.float32)
    data = tf.data.Dataset.from_tensor_slices({"x": x, "y": y})
    return data.batch(batch_size, drop_remainder=True).repeat()


def train(
    strategy: tf.distribute.Strategy, steps: int, logdir: str, log_every: int = 50
) -> tuple[keras.Model, dict[str, float]]:
    """Trains a model.

    Args:
      strategy: The distribution strategy.
      steps: The number of updates.
      logdir: The directory for TensorBoard.
      log_every: The number of updates between two logs.

    Returns:
      The model, and the losses and scalar summaries of the last logged update.
    """
    with strategy.scope():
        model = Regression()
        step = tfloss.TrainStep(model, keras.optimizers.Adam(0.05))
    dataset = points()
    step.build(dataset.element_spec)
    iterator = iter(strategy.experimental_distribute_dataset(dataset))
    writer = tf.summary.create_file_writer(logdir)

    @tf.function(autograph=False)
    def silent(iterator: Iterator[Any], count: tf.Tensor) -> None:  # computes no summaries
        tf.while_loop(lambda i: i < count, lambda i: (step(next(iterator)), i + 1)[1:], [0])

    @tf.function(autograph=False)
    def logged(iterator: Iterator[Any]) -> dict[str, tf.Tensor]:
        return step(next(iterator), tfloss.TraceOptions(recording=True)).scalars

    scalars: dict[str, float] = {}
    for last in range(log_every, steps + 1, log_every):
        silent(iterator, tf.constant(log_every - 1))
        scalars = {name: float(value) for name, value in logged(iterator).items()}
        with writer.as_default(step=last):
            for name, value in scalars.items():
                tf.summary.scalar(name, value)
    writer.close()
    return model, scalars


if __name__ == "__main__":
    where = tempfile.mkdtemp(prefix="plain_loop_")
    print(train(tf.distribute.get_strategy(), steps=200, logdir=where)[1])
    print(f"tensorboard --logdir {where}")
