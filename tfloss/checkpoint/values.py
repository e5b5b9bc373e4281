"""Variables' values, to and from the host, whatever each replica has of them. Host code."""

import contextlib
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf


def tf_variable(variable: Any) -> Any:
    """TensorFlow's variable in a Keras one; itself otherwise."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def read(variable: Any) -> np.ndarray:
    """A copy of the value on the host. Where replicas have values of their own: their mean.

    Integers that differ (seed states) are those of replica 0, and so is a variable whose
    aggregation is "only_first_replica". A variable that is summed when read (a metric's) gives
    the sum.
    """
    return array(read_tensor(variable)).copy()


def read_tensor(variable: Any) -> tf.Tensor:
    """The same as a tensor, which may be the variable's own memory.

    Use it, and let go of it, before the variable changes (TensorFlow copies the variable then, if
    someone holds it).
    """
    value = tf_variable(variable)
    if not isinstance(value, tf.distribute.DistributedValues):
        return _on_host(value)
    aggregation = getattr(value, "aggregation", None)
    if aggregation == tf.VariableAggregation.SUM:
        return _on_host(value)
    tensors = [_on_host(one) for one in _replica_values(value)]
    local = [array(one) for one in tensors]
    floating = tf.as_dtype(value.dtype).is_floating
    first_only = aggregation == tf.VariableAggregation.ONLY_FIRST_REPLICA
    if first_only or not floating or all(np.array_equal(local[0], one) for one in local[1:]):
        return tensors[0]
    with tf.device("CPU:0"):
        mean = np.mean([one.astype(np.float64) for one in local], 0)
        return tf.constant(mean.astype(local[0].dtype))


def array(tensor: tf.Tensor) -> np.ndarray:
    """What `read_tensor` gave as an array, without copying."""
    # Which TensorFlow can't for a bfloat16 scalar.
    return np.asarray(tensor if tensor.shape.rank else tensor.numpy())


def _on_host(variable: Any) -> tf.Tensor:
    with tf.device("CPU:0"):
        return tf.identity(variable.read_value())


def assign(variable: Any, value: np.ndarray) -> None:
    """Gives a variable a value on all replicas. `read` then returns exactly this value.

    TensorFlow divides what is summed when read by the number of replicas: an integer 7 comes
    back from two as 6, a float from three a little off. Here replica 0 gets all of it.
    """
    inner = tf_variable(variable)
    if is_accumulator(inner) and isinstance(inner, tf.distribute.DistributedValues):
        local = _replica_values(inner)
        if len(local) == inner.distribute_strategy.num_replicas_in_sync:  # all in this process
            for index, one in enumerate(local):
                one.assign(value if index == 0 else tf.zeros_like(one))
            return
    variable.assign(value)


def is_accumulator(variable: Any) -> bool:
    """True for what is summed over replicas when it is read: the variables of a metric."""
    if isinstance(variable, keras.Variable):
        return (variable.synchronization, variable.aggregation) == ("on_read", "sum")
    return (
        getattr(variable, "synchronization", None) == tf.VariableSynchronization.ON_READ
        and getattr(variable, "aggregation", None) == tf.VariableAggregation.SUM
    )


@contextlib.contextmanager
def synced_by_all() -> Iterator[None]:
    """Inside, `sync_replicas` does nothing: all workers have done it, and one goes on alone."""
    _synced.append(True)
    try:
        yield
    finally:
        _synced.pop()


_synced: list[bool] = []


def sync_replicas(model: keras.Model, more: Iterable[tf.Variable] = ()) -> None:
    """Gives every replica the mean of what each has its own value of (BatchNormalization).

    All workers must call it.

    Args:
      more: other variables that replicas may have their own values of, such as averages.
    """
    if _synced:
        return
    values = [
        tf_variable(variable)
        for variable in model.variables
        if not variable.trainable and tf.as_dtype(variable.dtype).is_floating
    ]
    values = [one for one in [*values, *more] if isinstance(one, tf.distribute.DistributedValues)]
    if not values:
        return
    strategy: Any = values[0].distribute_strategy
    if len(_replica_values(values[0])) == strategy.num_replicas_in_sync:  # all in this process
        for value in values:
            assign(value, read(value))
        return

    # As a function, since strategies warn of what they run eagerly. One that is kept: it is traced
    # once, and not for each checkpoint.
    known = _averaging.setdefault(model, {})
    key = tuple(map(id, values))
    if key not in known:
        known[key] = tf.function(lambda: _mean(strategy, values), autograph=False)
    known[key]()


_averaging: weakref.WeakKeyDictionary[keras.Model, dict[tuple[int, ...], Any]] = (
    weakref.WeakKeyDictionary()
)


def _mean(strategy: tf.distribute.Strategy, variables: list[Any]) -> None:
    """Traced, cross-replica."""

    def replica():
        context = tf.distribute.get_replica_context()
        mean = tf.distribute.ReduceOp.MEAN
        found = context.all_reduce(mean, [tf.identity(one) for one in variables])
        for variable, value in zip(variables, found, strict=True):
            variable.assign(value)

    strategy.run(replica)


def _replica_values(value: Any) -> tuple:
    return value.distribute_strategy.experimental_local_results(value)
