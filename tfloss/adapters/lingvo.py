"""A task with the two methods of Lingvo becomes a model that reports its loss.

class Task(keras.Layer):
    def ComputePredictions(self, theta, batch):
        return self.dense(batch["x"])

    def ComputeLoss(self, theta, predictions, batch):
        error = (predictions - batch["y"]) ** 2
        size = tf.cast(tf.shape(error)[0], tf.float32)
        return {"loss": (tf.reduce_mean(error), size)}, {"error": error}

trainer = tfloss.Trainer(tfloss.adapters.lingvo_style(Task()), optimizer)
"""

from collections.abc import Mapping
from typing import Any, cast

import keras
import tensorflow as tf

from tfloss import summary
from tfloss.errors import LossError, ModelError
from tfloss.forward.global_batch import divides_batch, global_mean
from tfloss.inspect.traceback_filtering import filtered_tracebacks


@filtered_tracebacks
def lingvo_style(task: Any) -> keras.Model:
    """Makes a model that reports the `loss` of a task which is written as for Lingvo.

    The task has `ComputePredictions(theta, batch)` and `ComputeLoss(theta, predictions, batch)`.
    The latter returns `(metrics, per_example)`, with `metrics = {name: (value, weight)}`. The
    metric `loss` is minimised, and all others are logged as summaries. On several replicas and
    micro-batches, each is the mean of the parts' values, weighted by their weights. A summary is
    that over all steps since the last log, too, as in Lingvo. The curve of `loss` counts each step
    once, as each update does. Nothing uses `per_example`. Runs on the host.

    In inference the model returns what `ComputePredictions` returns. The layers of the task are in
    training mode in training only.

    With a `ComputeLoss` that returns what `ComputePredictions` has computed, a model that owns its
    losses trains as it does alone, bit for bit.

    Args:
      task: A `keras.Layer` or `keras.Model` with these methods, so that its variables and layers
        are tracked. `theta` is its attribute `theta`; without such an attribute, the mapping from
        the paths of its variables to the variables.

    Returns:
      A model for `tfloss.Trainer`, named `lingvo_style_<name of the task>`.

    Raises:
      ModelError: The task is no Keras layer, or lacks a method.
    """
    name = type(task).__name__
    missing = [one for one in ("ComputePredictions", "ComputeLoss") if not hasattr(task, one)]
    if missing:
        raise ModelError(f"Task {name} has no method {missing[0]}. Lingvo's tasks have both.")
    if not isinstance(task, keras.Layer):
        raise ModelError(
            f"Task {name} is not a keras.Layer, so its variables can't be found. Write `class "
            f"{name}(keras.Layer):`, and create variables by self.add_weight, layers by Keras."
        )
    return _LingvoStyle(task)


class _LingvoStyle(keras.Model):
    """A task that computes predictions, and losses of them, in two methods."""

    def __init__(self, task: Any):
        super().__init__(name=f"lingvo_style_{task.name}")
        self.task = task

    def call(self, batch: Any, training: bool = False) -> Any:
        task = self.task
        theta = task.theta if hasattr(task, "theta") else {v.path: v for v in task.variables}
        predictions = task.ComputePredictions(theta, batch)
        task.built = True  # it is never called itself
        if not training:
            return predictions
        metrics = self._checked(task.ComputeLoss(theta, predictions, batch))
        for name, (value, weight) in metrics.items():
            if name != "loss":
                summary.scalar(name, value, weight=weight)
        return {"loss": _mean(*metrics["loss"])}

    def _checked(self, returned: Any) -> dict[str, tuple[Any, Any]]:
        """Checks what `ComputeLoss` returned, and returns its metrics."""
        kind = type(self.task).__name__
        pair = cast(tuple[Any, ...], returned) if isinstance(returned, tuple) else ()
        if len(pair) != 2 or not isinstance(pair[0], Mapping):
            raise LossError(
                f"{kind}.ComputeLoss must return (metrics, per_example), with metrics = "
                f"{{name: (value, weight)}}; got {type(returned).__name__}."
            )
        metrics = cast(Mapping[str, Any], pair[0])
        for name, metric in metrics.items():
            if not isinstance(metric, tuple | list) or len(cast(Any, metric)) != 2:
                raise LossError(f"{kind}.ComputeLoss: metric {name!r} must be (value, weight).")
        if "loss" not in metrics:
            raise LossError(
                f"{kind}.ComputeLoss returned no metric named 'loss', which is minimised. It "
                f"returned: {', '.join(metrics)}."
            )
        return {name: (value, weight) for name, (value, weight) in metrics.items()}


def _mean(value: Any, weight: Any) -> Any:
    """The mean of the values of all replicas and micro-batches, weighted by their weights."""
    if not divides_batch():
        return value
    return global_mean(tf.convert_to_tensor(value), weight)
