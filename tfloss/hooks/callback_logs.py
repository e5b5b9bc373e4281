"""The names and values that Keras callbacks expect in their logs. Host code."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras

from tfloss.evaluation.metrics import Mode
from tfloss.hooks.base import Hook
from tfloss.hooks.evaluate import Evaluate
from tfloss.hooks.monitored_metric import known_mode

_LOSSES, _WEIGHTED = "losses/", "weighted_losses/"
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
        tag.removeprefix(_LOSSES): value
        for tag, value in means.items()
        if not tag.startswith(_WEIGHTED) and tag != _SET_BY_CALLBACKS
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
    found: dict[str, float] = {}
    for tag, value in scalars.items():
        names = [name for name in evaluations if tag.startswith(f"{name}/")]
        prefix = max(names, key=len, default=tag.split("/")[0])
        rest = tag.removeprefix(prefix).removeprefix("/")
        if rest.startswith(_LOSSES):
            rest = "loss" if rest == f"{_LOSSES}total" else rest.removeprefix(_LOSSES)
        found[f"{prefix}_{rest}" if rest else prefix] = float(value)
    return found


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
    if f"{_LOSSES}{monitor}" in losses:
        return "min"
    evaluations: list[Hook] = [hook for hook in hooks if isinstance(hook, Evaluate)]
    for hook in evaluations:
        assert isinstance(hook, Evaluate)
        rest = monitor.removeprefix(f"{hook.name}_")
        if rest == monitor:
            continue
        tag = f"{hook.name}/{rest}"
        if not hook.logs(tag):
            tag = f"{hook.name}/{_LOSSES}{'total' if rest == 'loss' else rest}"
        if hook.logs(tag):
            if mode := known_mode(tag, evaluations):
                return mode
            kind = type(callback).__name__
            raise ValueError(
                f"{kind} monitors {monitor!r}, and nobody knows whether lower or higher values of "
                f"it are better. Give {kind}(..., mode='min') or mode='max'."
            )
    return None
