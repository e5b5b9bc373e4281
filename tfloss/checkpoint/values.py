"""Reads and assigns the values of variables, whatever each replica holds of them. Host code."""

import contextlib
import weakref
from collections.abc import Generator, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf


def tf_variable(variable: Any) -> Any:
    """Returns TensorFlow's variable inside a Keras one; any other variable as it is.

    Args:
      variable: A `keras.Variable` or `tf.Variable`.
    """
    return variable.value if isinstance(variable, keras.Variable) else variable


def read(variable: Any) -> np.ndarray:
    """Copies the value of a variable to the host.

    If the replicas hold different values, the result is their mean. Integers that differ (seed
    states), and variables with the aggregation "only_first_replica", are read from replica 0. A
    variable that is summed when it is read (a metric's) gives the sum.

    Args:
      variable: A `keras.Variable` or `tf.Variable`, distributed or not.

    Returns:
      The value, with the variable's shape and dtype.
    """
    return as_array(read_tensor(variable)).copy()


def read_tensor(variable: Any) -> tf.Tensor:
    """Reads a variable as `read` does, but without a copy where possible.

    The tensor may share memory with the variable. Use it and drop it before the variable changes:
    TensorFlow copies the whole variable at the next assignment if somebody holds its tensor.

    Args:
      variable: A `keras.Variable` or `tf.Variable`, distributed or not.

    Returns:
      The value, as a tensor on the host.
    """
    value = tf_variable(variable)
    if not isinstance(value, tf.distribute.DistributedValues):
        return _on_host(value)
    aggregation = getattr(value, "aggregation", None)
    if aggregation == tf.VariableAggregation.SUM:
        return _on_host(value)
    tensors = [_on_host(one) for one in _replica_values(value)]
    arrays = [as_array(tensor) for tensor in tensors]
    floating = tf.as_dtype(value.dtype).is_floating
    first_only = aggregation == tf.VariableAggregation.ONLY_FIRST_REPLICA
    if first_only or not floating or all(np.array_equal(arrays[0], one) for one in arrays[1:]):
        return tensors[0]
    with tf.device("CPU:0"):
        mean = np.mean([array.astype(np.float64) for array in arrays], 0)
        return tf.constant(mean.astype(arrays[0].dtype))


class ReplicaRows:
    """A distributed variable of which each replica holds the rows of its own examples.

    It is read and assigned as one tensor, with the rows of all replicas in order, so that its value
    doesn't depend on the number of replicas. Host code.

    Args:
      variable: A distributed `tf.Variable` whose replicas are all in this process.

    Attributes:
      values: The variables of the replicas.
      shape: Shape of the whole.
      dtype: Dtype of the variable.
    """

    def __init__(self, variable: Any):
        self.values = _replica_values(variable)
        rows, *rest = self.values[0].shape
        self.shape = tf.TensorShape([rows * len(self.values), *rest])
        self.dtype = variable.dtype

    def read_value(self) -> tf.Tensor:
        """Returns the rows of all replicas, on the host."""
        with tf.device("CPU:0"):
            return tf.concat([tf.identity(one) for one in self.values], 0)

    def assign(self, value: Any) -> None:
        """Gives each replica its rows of a value with the shape of the whole."""
        for one, part in zip(self.values, tf.split(value, len(self.values)), strict=True):
            one.assign(part)


def per_example(variable: Any) -> Any:
    """Returns a variable that has a row for each example of a batch, as a checkpoint holds it.

    Args:
      variable: A `keras.Variable` or `tf.Variable`.
    """
    inner = tf_variable(variable)
    distributed = isinstance(inner, tf.distribute.DistributedValues)
    return ReplicaRows(inner) if distributed else variable


def as_array(tensor: tf.Tensor) -> np.ndarray:
    """Returns a tensor on the host as an array, without a copy.

    Args:
      tensor: The result of `read_tensor`.
    """
    # NumPy can't view a bfloat16 scalar of TensorFlow.
    return np.asarray(tensor if tensor.shape.rank else tensor.numpy())


def _on_host(variable: Any) -> tf.Tensor:
    with tf.device("CPU:0"):
        return tf.identity(variable.read_value())


def assign(variable: Any, value: np.ndarray) -> None:
    """Assigns a value on all replicas. `read` returns exactly this value afterwards.

    TensorFlow divides the value of a variable that is summed when it is read by the number of
    replicas. Then an integer 7 is read as 6 on two replicas, and a float is rounded on three. So
    here replica 0 gets the value, and the others get zero.

    Args:
      variable: A `keras.Variable` or `tf.Variable`, distributed or not.
      value: The value, with the variable's shape.
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
    """Returns whether a variable is summed over replicas when it is read, as a metric's is.

    Args:
      variable: A `keras.Variable` or `tf.Variable`.
    """
    if isinstance(variable, keras.Variable):
        return (variable.synchronization, variable.aggregation) == ("on_read", "sum")
    return (
        getattr(variable, "synchronization", None) == tf.VariableSynchronization.ON_READ
        and getattr(variable, "aggregation", None) == tf.VariableAggregation.SUM
    )


@contextlib.contextmanager
def skip_replica_sync() -> Generator[None]:
    """Inside the `with`, `sync_replicas` does nothing.

    For code that one worker runs alone, after all workers have called `sync_replicas`.
    """
    _skipping.append(True)
    try:
        yield
    finally:
        _skipping.pop()


_skipping: list[bool] = []


def sync_replicas(model: keras.Model, more: Iterable[tf.Variable] = ()) -> None:
    """Gives every replica the mean of the statistics that each has its own values of.

    These are floating-point variables that are not trainable, such as BatchNormalization's moving
    averages. Host code, cross-replica; all workers must call it.

    Args:
      model: A model, created under a strategy or not.
      more: Other variables that may differ between replicas, such as averages of the weights.
    """
    if _skipping:
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

    # A tf.function, since strategies warn about a collective that runs eagerly. It is kept, so that
    # it is traced once, and not for each checkpoint.
    functions = _sync_functions.setdefault(model, {})
    key = tuple(map(id, values))
    if key not in functions:
        functions[key] = tf.function(lambda: _assign_mean(strategy, values), autograph=False)
    functions[key]()


_sync_functions: weakref.WeakKeyDictionary[keras.Model, dict[tuple[int, ...], Any]] = (
    weakref.WeakKeyDictionary()
)


def _assign_mean(strategy: tf.distribute.Strategy, variables: list[Any]) -> None:
    """Assigns the mean over all replicas. Traced, cross-replica."""

    def replica() -> None:
        context = tf.distribute.get_replica_context()
        mean = tf.distribute.ReduceOp.MEAN
        means = context.all_reduce(mean, [tf.identity(one) for one in variables])
        for variable, value in zip(variables, means, strict=True):
            variable.assign(value)

    strategy.run(replica)


def _replica_values(value: Any) -> tuple[Any, ...]:
    return value.distribute_strategy.experimental_local_results(value)
