"""Which Keras callbacks can be used, and which of their methods do something. Host code."""

import warnings
from collections.abc import Mapping
from typing import Any

import keras

from tfloss import _upstream
from tfloss.optimizers.hyperparameters import scalar_variables

_INSTEAD = {
    "BackupAndRestore": "Remove it: with a workdir, tfloss resumes from its newest checkpoint.",
    "ModelCheckpoint": "Use tfloss.hooks.ExportBest({metric!r}, path={path!r}, export=lambda "
    "model, path: ...) with a call such as net.save(path), to keep the best model in a file. "
    "tfloss.hooks.SaveCheckpoint(every, keep_best=1, metric={metric!r}) keeps all of the run.",
    "OrbaxCheckpoint": "Use tfloss.hooks.SaveCheckpoint.",
    "ProgbarLogger": "Remove it: tfloss.hooks.Progress is a default hook.",
    "SwapEMAWeights": "Use Trainer(ema=0.999), and Evaluate(..., ema=True).",
    "TerminateOnNaN": "Remove it: tfloss.hooks.NaNGuard is a default hook.",
}
_WRITERS = (
    keras.callbacks.CSVLogger,
    keras.callbacks.RemoteMonitor,
    keras.callbacks.TensorBoard,
)
_BATCH_METHODS = ("on_batch_begin", "on_batch_end", "on_train_batch_begin", "on_train_batch_end")
_NEVER_CALLED = (
    *("on_test_begin", "on_test_end", "on_test_batch_begin", "on_test_batch_end"),
    *("on_predict_begin", "on_predict_end", "on_predict_batch_begin", "on_predict_batch_end"),
)


def check_callback(callback: Any) -> None:
    """Refuses what is no callback, and callbacks that would do the work of a hook on their own.

    Warns of methods that are never called.

    Raises:
      TypeError: The message names the callback, and what to do.
    """
    if not isinstance(callback, keras.callbacks.Callback):
        raise TypeError(
            f"KerasCallbacks got {callback!r}. Give it objects of the classes in keras.callbacks, "
            "or of your own subclasses of keras.callbacks.Callback."
        )
    kind = type(callback)
    for base in kind.__mro__:
        if is_of_keras(base) and base.__name__ in _INSTEAD:
            own = "" if base is kind else f", a {base.__name__},"
            raise TypeError(
                f"The Keras callback {kind.__name__}{own} would save or show only a part of the "
                f"run. {_INSTEAD[base.__name__].format(**_shown(callback))}"
            )
    never = [name for name in _NEVER_CALLED if _overrides(callback, name)]
    if never and not is_of_keras(kind):
        warnings.warn(
            f"KerasCallbacks never calls {kind.__name__}.{', '.join(never)}. Results of Evaluate "
            "hooks are in the logs of on_epoch_end, as val_...",
            stacklevel=4,
        )


def check_rate(callback: Any, optimizers: Mapping[str, keras.Optimizer]) -> None:
    """Refuses a callback that sets a learning rate that the optimizer computes.

    Args:
      callback: The callback.
      optimizers: `{name: optimizer}`.

    Raises:
      ValueError: The learning rate of an optimizer is a schedule.
    """
    setters = keras.callbacks.LearningRateScheduler, keras.callbacks.ReduceLROnPlateau
    if not isinstance(callback, setters):
        return
    check_constant_rates(type(callback).__name__, optimizers)


def check_constant_rates(owner: str, optimizers: Mapping[str, keras.Optimizer]) -> None:
    """Checks that somebody can set the learning rate of every optimizer.

    Args:
      owner: Class name of who sets it, for the message.
      optimizers: `{name: optimizer}`.

    Raises:
      ValueError: The learning rate of an optimizer is a schedule.
    """
    for name, optimizer in optimizers.items():
        if "learning_rate" not in scalar_variables(optimizer):
            of_group = f" of group {name!r}" if len(optimizers) > 1 else ""
            raise ValueError(
                f"{owner} sets the learning rate, but the optimizer{of_group} "
                f"({type(optimizer).__name__}) has a schedule. Give it a number, or remove {owner}."
            )


def has_batch_methods(callback: keras.callbacks.Callback) -> bool:
    """Returns whether a callback does something at each batch."""
    if type(callback) is keras.callbacks.TensorBoard:
        return _upstream.writes_at_batches(callback)
    return any(_overrides(callback, name) for name in _BATCH_METHODS)


def only_writes(callback: keras.callbacks.Callback) -> bool:
    """Returns whether a callback writes what others decide: the first worker suffices."""
    return isinstance(callback, _WRITERS)


def is_of_keras(kind: type) -> bool:
    """Returns whether a class is Keras's own."""
    return kind in vars(keras.callbacks).values()


def _shown(callback: keras.callbacks.Callback) -> dict[str, str]:
    """The values of a ModelCheckpoint that its replacement has, too."""
    monitor = str(getattr(callback, "monitor", "val_loss"))
    metric = f"val/{monitor[4:]}" if monitor.startswith("val_") else f"losses/{monitor}"
    return {"metric": metric, "path": str(getattr(callback, "filepath", "best.keras"))}


def _overrides(callback: keras.callbacks.Callback, name: str) -> bool:
    """Whether a callback has a method of its own, in its class or as an attribute."""
    own = getattr(type(callback), name) is not getattr(keras.callbacks.Callback, name)
    return own or name in vars(callback)
