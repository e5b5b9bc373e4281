"""What `Trainer` makes of its arguments, and which ones it refuses. Host code."""

import difflib
import inspect
import reprlib
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from tfloss import _upstream
from tfloss.common import activity
from tfloss.common.other_names import ARGUMENTS, METHODS, hint
from tfloss.data.adapted import adapted, has_examples
from tfloss.data.distributed import Data, as_dataset, replica_spec
from tfloss.data.feed import Feed
from tfloss.distribute.strategy import worker_position
from tfloss.errors import ModelError
from tfloss.hooks.base import Hook, is_own
from tfloss.hooks.keras_callbacks import KerasCallbacks
from tfloss.hooks.run_info import RunInfo
from tfloss.inspect.traceback_filtering import filtered_tracebacks
from tfloss.step.step_options import StepOptions
from tfloss.step.train_step import TrainStep
from tfloss.trainer.run_state import RunState


@activity.during("building the model")
def build(train_step: TrainStep, dataset: Any) -> None:
    """Builds the model for the batches of a data set.

    Args:
      train_step: The step.
      dataset: The `tf.data.Dataset` of the batches.

    Raises:
      ModelError: An RNN with `stateful=True` can't have a state for each example.
    """
    strategy, spec = train_step.strategy, dataset.element_spec
    stateful = _upstream.stateful_rnns(train_step.model)
    if stateful:
        size = train_step.batch_layout.static_count(spec)
        replicas = strategy.num_replicas_in_sync
        if worker_position(strategy)[1] > 1 or size is None or size % replicas:
            raise ModelError(
                f"Layer {stateful[0]!r} has stateful=True, so it has a state for each example of a "
                f"batch, and all batches must have the same size. On {replicas} replicas of one "
                f"worker the size must be a multiple of {replicas}; several workers are not "
                "supported. Batch the data with drop_remainder=True, or pass states explicitly "
                "(initial_state, return_state)."
            )
    train_step.build(
        replica_spec(spec, strategy, train_step.batch_layout, with_count=bool(stateful))
    )


def build_by_training_forward(train_step: TrainStep, data: Any, caller: str) -> None:
    """Builds the model by its training forward, for a method that may have got other data.

    Args:
      train_step: The step.
      data: Batches as `train` takes them. Only their structure is used.
      caller: Name of the method of `Trainer`, for the message.
    """
    try:
        if has_examples(data):  # their number in a batch makes no difference
            data = adapted(data, 1)
        build(train_step, as_dataset(adapted(data), train_step.strategy))
    except Exception as error:
        error.add_note(
            f"Trainer.{caller}(data) builds the model by its training forward. For this it needs "
            "batches as train() takes them, not those of inference. If they differ, call "
            "trainer.restore(training_data) before evaluate()."
        )
        raise


def made_step(
    train_step: type[TrainStep] | TrainStep,
    model: Any,
    optimizer: Any,
    options: StepOptions,
    trainer: type,
) -> TrainStep:
    """The step: the given instance, or one that is made of the arguments.

    Raises:
      ValueError: The arguments contradict each other.
    """
    if not isinstance(train_step, TrainStep):
        kind: Any = train_step
        if not isinstance(kind, type) or not issubclass(kind, TrainStep):
            raise ValueError(
                "train_step must be a subclass of tfloss.TrainStep, or an instance of one; got "
                f"{kind!r}."
            )
        if isinstance(model, type):
            raise ValueError(f"model is the class {model.__name__}. Write {model.__name__}(...).")
        if not isinstance(model, keras.Model):
            raise ValueError(f"model must be a keras.Model, got {type(model).__name__}.")
        if not hasattr(model, "name"):
            raise ValueError(
                f"The model is not initialised: call super().__init__() first in "
                f"{type(model).__name__}.__init__."
            )
        _check_options(train_step, options, trainer)
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


def checked_hooks(hooks: Any) -> list[Hook]:
    """The hooks as a list. All bare Keras callbacks become one hook, where the first one stands.

    Raises:
      TypeError: `hooks` is not a list of hooks, or has a Keras callback that can't be used. The
        message names what it is.
    """
    if isinstance(hooks, Hook) or not isinstance(hooks, Iterable):
        what = type(hooks).__name__
        raise TypeError(f"hooks must be a list of hooks, got {what}. Write hooks=[{what}(...)].")
    found: list[Any] = list(hooks)
    callbacks = [hook for hook in found if isinstance(hook, keras.callbacks.Callback)]
    if callbacks:
        first = found.index(callbacks[0])
        rest = [hook for hook in found if not isinstance(hook, keras.callbacks.Callback)]
        found = [*found[:first], KerasCallbacks(callbacks), *rest[first:]]
    for index, hook in enumerate(found):
        where = f"hooks[{index}]"
        if isinstance(hook, type):
            raise TypeError(f"{where} is the class {hook.__name__}. Write {hook.__name__}(...).")
        if not isinstance(hook, Hook):
            raise TypeError(
                f"{where} is not a hook but {reprlib.repr(hook)}. Hooks are objects of the "
                "classes in tfloss.hooks, or of your own subclasses of tfloss.hooks.Hook."
            )
        _warn_of_unused(hook)
    return found


def _warn_of_unused(hook: Hook) -> None:
    """Warns of methods of a hook that nobody calls: those of other libraries, or misspelt ones."""
    kind = type(hook)
    if is_own(hook):
        return
    called = [n for n in vars(Hook) if callable(getattr(Hook, n)) and not n.startswith("_")]
    for name in dir(kind):
        if hasattr(Hook, name) or name.startswith("_") or not callable(getattr(kind, name)):
            continue
        near = difflib.get_close_matches(name, called, n=1, cutoff=0.8)
        if near or name.startswith("on_"):
            instead = f" Did you mean {near[0]!r}?" if near else ""
            warnings.warn(
                f"tfloss never calls {kind.__name__}.{name}.{instead} A hook has the methods "
                f"{', '.join(called)}. For those of Keras, subclass keras.callbacks.Callback.",
                stacklevel=3,
            )
    timed = kind.after_step is not Hook.after_step
    if timed and hook.every is None and kind.after_train is Hook.after_train:
        warnings.warn(
            f"{kind.__name__}.after_step is never called, because the hook has no `every`. Write "
            "every = Every(steps=100) in the class.",
            stacklevel=3,
        )


def _check_options(train_step: type[TrainStep], options: Iterable[str], trainer: type) -> None:
    """Raises TypeError for an option that neither the trainer nor the step has."""
    parameters = inspect.signature(train_step).parameters
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return
    for name in options:
        if name not in parameters:
            known = {*parameters, *inspect.signature(trainer).parameters}
            raise TypeError(f"Trainer has no option {name!r}.{hint(name, known, ARGUMENTS)}")


class OtherNames:
    """Says in the error of an attribute that doesn't exist what it is called here."""

    if not TYPE_CHECKING:  # a type checker must not take every attribute for one that exists

        @filtered_tracebacks
        def __getattr__(self, name: str) -> Any:
            """Raises AttributeError, with what to write instead."""
            kind = type(self)
            error = AttributeError(f"{kind.__name__!r} object has no attribute {name!r}")
            known = [one for one in dir(kind) if not one.startswith("_")]
            if not name.startswith("_") and (text := hint(name, known, METHODS)):
                error.add_note(text.strip())
            raise error


def optimizer_of(train_step: TrainStep) -> Any:
    """The optimizer of a step, or those of its groups by name; None if there is none."""
    optimizers = train_step.optimizers
    return next(iter(optimizers.values())) if len(optimizers) == 1 else optimizers or None


def new_feed(
    data: Data,
    strategy: tf.distribute.Strategy,
    train_step: TrainStep,
    run: RunState,
    *,
    keeps: bool,
) -> Feed:
    """The feed of some data for a run, from their beginning. `keeps`: the position is saved."""
    return Feed(
        data,
        strategy,
        train_step.accumulate,
        layout=train_step.batch_layout,
        log_every=run.log_every,
        current_step=lambda: run.step,
        keeps=keeps,
        clock=run.clock,
    )


def run_info(
    run: RunState, steps: int, feed: Feed, accumulate: int, steps_per_epoch: float | None
) -> RunInfo:
    """What hooks can know about a call of `train`, which takes `accumulate` batches a step."""
    size, epoch = feed.reader.batch_size, feed.reader.batches_per_epoch
    return RunInfo(
        run.step,
        steps,
        size and size * accumulate,
        steps_per_epoch or (epoch and epoch / accumulate),
        run.window.pending(run.step),
        run.rewound,
    )


def check_trainable(train_step: TrainStep) -> None:
    """Checks that a trainer can train.

    Raises:
      ValueError: There is no optimizer.
    """
    if not train_step.groups:
        raise ValueError(
            "This Trainer has no optimizer, so it can't train. Give it one: Trainer(model, "
            "keras.optimizers.Adam(1e-3), ...). Without an optimizer it only restores and "
            "evaluates."
        )


def check_positive(name: str, value: Any) -> None:
    """Raises ValueError unless a value is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        whole = isinstance(value, float) and value >= 1 and value.is_integer()
        advice = f" Write {name}={int(value)}." if whole else ""
        raise ValueError(
            f"{name} must be a whole number of at least 1, got {_short(value)}.{advice}"
        )


def _short(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return reprlib.repr(value) if shape is None else f"{type(value).__name__} of shape {shape}"
