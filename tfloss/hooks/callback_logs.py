"""The names and values that Keras callbacks expect in their logs. Host code."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras

from tfloss.evaluation.metrics import Mode
from tfloss.hooks.evaluate import Evaluate
from tfloss.hooks.logged_names import LOSSES, TOTAL, WEIGHTED, LoggedNames, keras_name
from tfloss.hooks.monitored_metric import known_mode

_SET_BY_CALLBACKS = "learning_rate"  # the current one; Keras's own callbacks add it


def epoch_logs(means: Mapping[str, float]) -> dict[str, float]:
    """Returns what steps report, by Keras's names.

    Args:
      means: `{tag: value}` of the steps.

    Returns:
      `loss` for the total, each loss by its name, and all other scalars by their tags. Weighted
      losses and the learning rate are left out.
    """
    found = {
        tag.removeprefix(LOSSES): value
        for tag, value in means.items()
        if not tag.startswith(WEIGHTED) and tag != _SET_BY_CALLBACKS
    }
    total = found.pop("total", None)
    return ({} if total is None else {"loss": total}) | {
        name: value for name, value in found.items() if total is None or name != "loss"
    }


def result_logs(scalars: Mapping[str, float], hooks: Sequence[Any]) -> dict[str, float]:
    """Returns results of evaluations, by Keras's names: `val_loss`, `val_accuracy`.

    Args:
      scalars: Values that a hook logs, such as `val/losses/total` and `val/accuracy`.
      hooks: All hooks of the run.
    """
    evaluations = [hook.name for hook in hooks if isinstance(hook, Evaluate)]
    return {
        keras_name(tag, [*evaluations, tag.split("/")[0]]): float(value)
        for tag, value in scalars.items()
    }


def known_monitor_mode(
    callback: keras.callbacks.Callback, hooks: Sequence[Any], losses: Iterable[str] = ()
) -> Mode | None:
    """Returns the direction of the metric that a callback monitors, if Keras can't know it.

    Keras looks for it among the metrics of a compiled model.

    Args:
      callback: A callback. Those with `monitor`, `mode` and `monitor_op` monitor a metric.
      hooks: Hooks of the run, whose Evaluate hooks may log the metric.
      losses: Tags of the values that steps report.

    Returns:
      "min" or "max"; None if the callback has a mode, or if nobody knows.

    Raises:
      ValueError: An Evaluate hook logs the metric, and nobody knows its direction.
    """
    monitored = vars(callback)
    if monitored.get("mode") != "auto" or monitored.get("monitor_op", True) is not None:
        return None
    monitor = str(monitored.get("monitor"))
    if f"{LOSSES}{monitor}" in losses:
        return "min"
    evaluations = [hook for hook in hooks if isinstance(hook, Evaluate)]
    for hook in evaluations:
        for tag in _tags(monitor, hook.name):
            if not hook.logs(tag):
                continue
            if mode := known_mode(tag, evaluations):
                return mode
            kind = type(callback).__name__
            raise ValueError(
                f"{kind} monitors {monitor!r}, and nobody knows whether lower or higher values of "
                f"it are better. Give {kind}(..., mode='min') or mode='max'."
            )
    return None


def check_monitor(callback: keras.callbacks.Callback, names: LoggedNames) -> None:
    """Refuses a callback of Keras that monitors a value that will not be in its logs.

    Args:
      callback: Any callback.
      names: The names that the run logs, once the step was traced.

    Raises:
      ValueError: The message has the nearest name.
    """
    follows = keras.callbacks.EarlyStopping, keras.callbacks.ReduceLROnPlateau
    if not isinstance(callback, follows):
        return
    monitor = str(callback.monitor)
    tags = [f"{LOSSES}{monitor}", *([TOTAL] if monitor == "loss" else [])]
    if keras_name(monitor, [hook.name for hook in names.evaluations]) == monitor:
        tags.append(monitor)
    tags += [tag for hook in names.evaluations for tag in _tags(monitor, hook.name)]
    if all(map(names.lacks, tags)):
        names.refuse(type(callback).__name__, monitor, keras=True)


def _tags(monitor: str, evaluation: str) -> list[str]:
    """The names that an evaluation may log what a callback monitors under."""
    rest = monitor.removeprefix(f"{evaluation}_")
    if rest == monitor:
        return []
    return [f"{evaluation}/{rest}", f"{evaluation}/{LOSSES}{'total' if rest == 'loss' else rest}"]
