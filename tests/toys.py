"""Small models and data sets, with results that can be computed by hand."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfloss.data.batch_reader import BatchReader
from tfloss.data.distributed import distribute
from tfloss.engine.engine import Engine, StepLogs
from tfloss.step.trace_options import Mode
from tfloss.step.train_step import TrainStep

NO_DATA = tf.data.Dataset.range(0)  # for hooks that never read them


class Line(keras.Model):
    """y = w x, with w = 1 at the start.

    In training, the forward pass returns `report(model, batch, y)`: the mean of y by default.
    """

    def __init__(self, report: Callable[..., Any] | None = None, name: str = "line"):
        super().__init__(name=name)
        self.w = self.add_weight(name="w", shape=(), initializer="ones")
        self.report = report or (lambda model, batch, y: {"mean": tf.reduce_mean(y)})

    def call(self, batch: Any, training: bool = False) -> Any:
        y = self.w * batch["x"]
        return self.report(self, batch, y) if training else {"y": y}


class Accuracy:
    """A metric in plain Python that says of itself that higher values are better."""

    mode = "max"

    def reset(self) -> None: ...

    def update(self, batch: Any, predictions: Any) -> None: ...

    def result(self) -> float:
        return 1.0


def rows(values: Any, batch: int, key: str = "x") -> tf.data.Dataset:
    """Repeats `{key: values}` (float32) for ever, in batches of a fixed size."""
    values = np.asarray(values, np.float32)
    dataset = tf.data.Dataset.from_tensor_slices({key: values})
    return dataset.batch(batch, drop_remainder=True).repeat()


def make_step(
    make_model: Callable[[], keras.Model],
    dataset: tf.data.Dataset,
    strategy: tf.distribute.Strategy | None = None,
    optimizer: Callable[[], Any] = lambda: keras.optimizers.SGD(0.1),
    step: type[TrainStep] = TrainStep,
    **options: Any,
) -> tuple[TrainStep, Any]:
    """Returns a built training step, and an iterator over the data set for its replicas."""
    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
        train_step = step(make_model(), optimizer(), **options)
    train_step.build(BatchReader(dataset, strategy).element_spec)
    return train_step, iter(distribute(dataset, strategy))


def run(
    make_model: Callable[[], keras.Model],
    dataset: tf.data.Dataset,
    steps: int = 1,
    *,
    recording: bool = False,
    mode: Mode = "graph",
    **options: Any,
) -> tuple[TrainStep, dict[str, float], StepLogs]:
    """Trains for some steps.

    Returns:
      The training step, the scalars of the last step by name, and the logs of the last call.
    """
    train_step, iterator = make_step(make_model, dataset, **options)
    engine = Engine(train_step, mode=mode)
    if recording:
        for _ in range(steps - 1):
            engine.run(iterator, 1)
        logs = engine.run(iterator, 1, recording=True)
    else:
        logs = engine.run(iterator, steps)
    return train_step, dict(zip(logs.names, logs.rows()[-1].tolist(), strict=True)), logs
