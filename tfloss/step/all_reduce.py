"""Reductions of many tensors over replicas, in few calls. Replica code, traced.

TensorFlow joins the tensors of a call into one before it sends them, so they must have one dtype.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


def sum_over_replicas(tensors: Sequence[Any]) -> list[Any]:
    """Sums each tensor over the replicas, by one call for each dtype.

    float16 and bfloat16 are summed in float32, which makes the sum more precise, and independent
    of the order of the replicas. So they need no call of their own beside float32.

    Args:
      tensors: Tensors or IndexedSlices of any dtypes, in the same order on all replicas.

    Returns:
      The sums, of the same dtypes.
    """
    context = tf.distribute.get_replica_context()
    return _by_dtype(
        [_widened(one) for one in tensors],
        [one.dtype for one in tensors],
        lambda same: context.all_reduce(tf.distribute.ReduceOp.SUM, same),
    )


def max_over_replicas(tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Takes the maximum of each element over the replicas, by one call for each dtype.

    Args:
      tensors: Real tensors of any dtypes and static shapes, in the same order on all replicas.

    Returns:
      The maxima, of the same shapes and dtypes.
    """
    context = tf.distribute.get_replica_context()

    def maxima(same: list[tf.Tensor]) -> list[tf.Tensor]:
        flat = tf.concat([tf.reshape(one, [-1]) for one in same], 0)
        found = tf.reduce_max(context.all_gather(flat[None], axis=0), 0)
        pieces = tf.split(found, [one.shape.num_elements() for one in same])
        return [tf.reshape(p, one.shape) for p, one in zip(pieces, same, strict=True)]

    return _by_dtype([_widened(one) for one in tensors], [one.dtype for one in tensors], maxima)


def _by_dtype(
    tensors: list[Any], dtypes: list[tf.DType], reduce: Callable[[list[Any]], list[Any]]
) -> list[Any]:
    """Reduces the tensors of each dtype together, and restores the order and the dtypes."""
    places: dict[tf.DType, list[int]] = {}
    for place, one in enumerate(tensors):
        places.setdefault(one.dtype, []).append(place)
    found = list(tensors)
    for same in places.values():
        for place, one in zip(same, reduce([tensors[i] for i in same]), strict=True):
            found[place] = _restored(one, dtypes[place])
    return found


def _widened(tensor: Any) -> Any:
    """The tensor in a dtype that every implementation of a reduction can sum precisely."""
    if isinstance(tensor, tf.IndexedSlices):
        return _with_values(tensor, _widened(tensor.values))
    if tensor.dtype.is_complex:
        return tf.stack([tf.math.real(tensor), tf.math.imag(tensor)], -1)
    return tf.cast(tensor, tf.float32) if tensor.dtype.size < tf.float32.size else tensor


def _restored(tensor: Any, dtype: tf.DType) -> Any:
    if isinstance(tensor, tf.IndexedSlices):
        return _with_values(tensor, _restored(tensor.values, dtype))
    if tensor.dtype == dtype:
        return tensor
    return (
        tf.complex(tensor[..., 0], tensor[..., 1]) if dtype.is_complex else tf.cast(tensor, dtype)
    )


def _with_values(slices: tf.IndexedSlices, values: tf.Tensor) -> tf.IndexedSlices:
    return tf.IndexedSlices(values, slices.indices, slices.dense_shape)
