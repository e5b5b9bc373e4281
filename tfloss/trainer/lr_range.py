"""A learning-rate range test: the loss while the rate rises exponentially (Smith, WACV 2017).

`tfloss lr-range` starts a training script, whose first `Trainer.train` runs the test instead and
ends the process. Nothing is saved, and no hook runs. Host code.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import keras
import tensorflow as tf

from tfloss import _upstream
from tfloss.common.replacement import replace_file
from tfloss.data.feed import Feed
from tfloss.engine.engine import Engine
from tfloss.step.train_step import TrainStep

_MEMORY = 0.9  # of the exponential mean of the losses
_TIMES = 3.0  # a loss that is this much worse than the best, relative to it, diverges


@dataclasses.dataclass(frozen=True)
class LrRange:
    """The result of a range test.

    Attributes:
      rates: The learning rate of each update.
      losses: The objective before this update.
      smoothed: Its exponential mean, corrected for its start.
      diverged: Whether the test ended because the loss did.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    diverged: bool


def range_test_and_exit(step: TrainStep, feed: Feed, arguments: str, *, chief: bool) -> NoReturn:
    """Runs the test in a script that `tfloss lr-range` has started, and writes the result.

    Args:
      step: The built training step of the script.
      feed: The data of the run.
      arguments: "low", "high", "steps" and "file" as JSON.
      chief: Whether this worker writes the file.

    Raises:
      SystemExit: Always, with code 0, when the test is done.
    """
    asked: dict[str, Any] = json.loads(arguments)
    found = range_test(step, feed, asked["low"], asked["high"], asked["steps"])
    if chief:
        replace_file(Path(asked["file"]), json.dumps(dataclasses.asdict(found), indent=1))
    raise SystemExit(0)


def range_test(step: TrainStep, feed: Feed, low: float, high: float, steps: int) -> LrRange:
    """Trains with a rate that rises from `low` to `high`, until the loss diverges.

    The model and its optimizers are changed, and the latter have another learning rate afterwards.
    Several optimizers keep the ratios of their rates, if these are numbers.

    Args:
      step: A built training step.
      feed: Its data. They start again when they end.
      low: The first rate.
      high: The last rate.
      steps: Number of updates.

    Raises:
      DataError: The data are empty.
    """
    set_rate = _rising(step)
    engine = Engine(step, guard=False)
    rates: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    mean = 0.0
    while len(rates) < steps:
        rate = low * (high / low) ** (len(rates) / (steps - 1))
        set_rate(rate)
        loss = _next_loss(engine, feed, len(rates), steps)
        if not math.isfinite(loss):
            return LrRange(rates, losses, smoothed, diverged=True)
        mean = _MEMORY * mean + (1.0 - _MEMORY) * loss
        rates.append(rate)
        losses.append(loss)
        smoothed.append(mean / (1.0 - _MEMORY ** len(rates)))
        if _diverged(smoothed):
            return LrRange(rates, losses, smoothed, diverged=True)
    return LrRange(rates, losses, smoothed, diverged=False)


def _rising(step: TrainStep) -> Callable[[float], object]:
    """Gives the optimizers a rate that can be set, and returns the function that sets it.

    It takes the place of numbers and of schedules, before the step is traced.
    """
    with step.strategy.scope():
        rate: Any = keras.Variable(
            0.0, dtype="float32", trainable=False, aggregation="only_first_replica"
        )
    optimizers = list(step.optimizers.values())
    plain = [1.0] * len(optimizers)
    if not any(_upstream.learning_rate_function(one) for one in optimizers):
        plain = [float(tf.convert_to_tensor(one.learning_rate)) for one in optimizers]
    usable = all(value > 0 for value in plain)
    for optimizer, value in zip(optimizers, plain, strict=True):
        factor = value / plain[0] if usable else 1.0
        optimizer.learning_rate = lambda factor=factor: factor * tf.convert_to_tensor(rate.value)
    return rate.assign


def _next_loss(engine: Engine, feed: Feed, done: int, steps: int) -> float:
    """Runs a step, and returns its objective."""
    try:
        logs = engine.run(feed.input.source("graph"), 1)
    except (tf.errors.OutOfRangeError, StopIteration):
        if not done:
            feed.after_end(done, steps)
        feed.restart()
        logs = engine.run(feed.input.source("graph"), 1)
    return float(logs.rows()[0][logs.names.index("losses/total")])


def _diverged(smoothed: Sequence[float]) -> bool:
    """Whether the loss is far above its best, and above its first value."""
    best, last = min(smoothed), smoothed[-1]
    return last > max(best + _TIMES * abs(best), smoothed[0])
