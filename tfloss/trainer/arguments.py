"""What `Trainer` makes of its arguments, and which ones it refuses. Host code."""

from typing import Any

import keras
import numpy as np

from tfloss.data.distributed import as_dataset
from tfloss.data.feed import Feed
from tfloss.hooks.run_info import RunInfo
from tfloss.step.step_options import StepOptions
from tfloss.step.train_step import TrainStep


def build_by_training_forward(train_step: TrainStep, data: Any, caller: str) -> None:
    """Builds the model by its training forward, for a method that may have got other data.

    Args:
      train_step: The step.
      data: Batches as `train` takes them. Only their structure is used.
      caller: Name of the method of `Trainer`, for the message.
    """
    try:
        train_step.build(as_dataset(data, train_step.strategy).element_spec)
    except Exception as error:
        error.add_note(
            f"Trainer.{caller}(data) builds the model by its training forward. For this it needs "
            "batches as train() takes them, not those of inference. If they differ, call "
            "trainer.restore(training_data) before evaluate()."
        )
        raise


def made_step(
    train_step: type[TrainStep] | TrainStep, model: Any, optimizer: Any, options: StepOptions
) -> TrainStep:
    """The step: the given instance, or one that is made of the arguments.

    Raises:
      ValueError: The arguments contradict each other.
    """
    if not isinstance(train_step, TrainStep):
        if not isinstance(model, keras.Model):
            raise ValueError(f"model must be a keras.Model, got {type(model).__name__}.")
        return train_step(model, optimizer, **options)
    name = type(train_step).__name__
    given = [
        *(["model"] if model is not None and model is not train_step.model else []),
        *(["optimizer"] if optimizer is not None else []),
        *options,
    ]
    if given:
        raise ValueError(
            f"train_step is an instance of {name}, which has a model, an optimizer and options of "
            f"its own. Give {', '.join(given)} to {name}(...), not to the Trainer."
        )
    return train_step


def optimizer_of(train_step: TrainStep) -> Any:
    """The optimizer of a step, or those of its groups by name."""
    optimizers = train_step.optimizers
    return next(iter(optimizers.values())) if len(optimizers) == 1 else optimizers


def run_info(
    step: int, steps: int, feed: Feed, accumulate: int, steps_per_epoch: float | None
) -> RunInfo:
    """What hooks can know about a call of `train`, which takes `accumulate` batches a step."""
    size, epoch = feed.reader.batch_size, feed.reader.batches_per_epoch
    return RunInfo(
        step,
        steps,
        size and size * accumulate,
        steps_per_epoch or (epoch and epoch / accumulate),
    )


def check_positive(name: str, value: Any) -> None:
    """Raises ValueError unless a value is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
