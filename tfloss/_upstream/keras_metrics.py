"""What tfloss needs to know about Keras metrics."""

# This package is the place for private attributes.
# pyright: reportPrivateUsage=false

import copy
from typing import Any, Literal, TypeAlias

import keras

# Whether lower or higher values of a metric are better.
Mode: TypeAlias = Literal["min", "max"]


def copy_metric(metric: keras.Metric) -> keras.Metric:
    """Returns a copy of a metric whose variables are created in the current scope.

    The public way, `from_config(get_config())`, silently loses arguments, even of Keras's own
    metrics: the `axis` of CosineSimilarity. `copy.deepcopy` takes that way too.

    Args:
      metric: Any Keras metric. The layers that it refers to are shared with the copy.
    """
    copies: dict[int, Any] = {}
    todo, metrics = [metric], list[keras.Metric]()
    while todo:
        one = todo.pop()
        metrics.append(one)
        todo += one._metrics
        copies[id(one)] = object.__new__(type(one))
        copies |= {id(v): v for v in vars(one).values() if isinstance(v, keras.Layer)}
    for variable in metric.variables:
        copies[id(variable)] = keras.Variable(
            variable.numpy(), dtype=variable.dtype, trainable=False, name=variable.name
        )
    for one in metrics:
        vars(copies[id(one)]).update(copy.deepcopy(vars(one), copies))
    for one in metrics:  # copies of Keras's lists have added their elements a second time
        copies[id(one)]._metrics[:] = [copies[id(inner)] for inner in one._metrics]
        copies[id(one)]._variables[:] = [copies[id(inner)] for inner in one._variables]
    return copies[id(metric)]


def metric_mode(metric: keras.Metric) -> Mode | None:
    """Returns whether lower or higher values of a metric are better, or None if Keras doesn't say.

    Keras's callbacks read the same private attribute; nothing public tells. A subclass inherits it
    but may compute something else (an error rate from an accuracy), so only classes of Keras count.

    Args:
      metric: Any Keras metric.
    """
    if type(metric) is not getattr(keras.metrics, type(metric).__name__, None):
        return None
    modes: dict[Any, Mode] = {"down": "min", "up": "max"}
    return modes.get(getattr(metric, "_direction", None))
