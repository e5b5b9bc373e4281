"""Opens ragged, sparse and extension types down to tensors, which a signature can take. Host code.

A signature has dense tensors only, each with a name: `tokens_values` and `tokens_row_splits`.
"""

import re
from typing import Any

import tensorflow as tf

from tfloss import _upstream


def tensor_specs(name: str, spec: Any) -> list[tuple[str, Any]]:
    """Returns the named specs of the tensors of one input.

    Args:
      name: The name of the input.
      spec: A `tf.TensorSpec`, a spec of a composite tensor, or anything else.

    Returns:
      `(name, spec)` of each tensor, in the order of `tf.nest.flatten(..., expand_composites=True)`.
      A `tf.TensorSpec`, and what is no spec, stays as it is.
    """
    fields = _upstream.open_extension_type(spec)
    if fields is not None:
        named = [(re.sub(r"\W+", "_", field).strip("_"), one) for field, one in fields[0]]
        return [part for field, one in named for part in tensor_specs(f"{name}_{field}", one)]
    parts = tf.nest.flatten(spec, expand_composites=True)
    if isinstance(spec, tf.RaggedTensorSpec):
        splits = [f"row_splits_{i}" for i in range(len(parts) - 1)]
        names = ["values", *(["row_splits"] if len(splits) == 1 else splits)]
    elif isinstance(spec, tf.SparseTensorSpec):
        names = ["indices", "values", "dense_shape"]
    elif isinstance(spec, tf.TypeSpec) and not isinstance(spec, tf.TensorSpec):
        names = [str(index) for index in range(len(parts))]
    else:
        return [(name, spec)]
    return [(f"{name}_{part}", one) for part, one in zip(names, parts, strict=True)]


def is_composite(spec: Any) -> bool:
    """Returns whether a spec describes a composite tensor.

    Args:
      spec: A spec.
    """
    return isinstance(spec, tf.TypeSpec) and not isinstance(spec, tf.TensorSpec)


def pack(spec: Any, tensors: list[tf.Tensor]) -> Any:
    """Makes the value of an input from its tensors. Traced or eager.

    Args:
      spec: The spec of the input.
      tensors: As many tensors as `tensor_specs` returns.
    """
    return tf.nest.pack_sequence_as(spec, tensors, expand_composites=True)


def unpack(value: Any) -> list[tf.Tensor]:
    """Returns the tensors of a value of an input.

    Args:
      value: A tensor, or a composite tensor.
    """
    return tf.nest.flatten(value, expand_composites=True)
