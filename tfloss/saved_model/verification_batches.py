"""The inputs on which an export is compared with its model. Host code."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfloss.errors import ExportError
from tfloss.saved_model.composite_inputs import is_composite, unpack
from tfloss.saved_model.signature import Signature

_SIZES = (1, 3)
_FREE_SIZE = 64  # of generated inputs where a dimension other than the batch is dynamic


@dataclasses.dataclass(frozen=True)
class Batch:
    """Inputs of one comparison.

    Attributes:
      tensors: The input tensors, in the order of the signature's specs.
      name: What to call it in messages.
      may_fail: Whether the model need not accept it: rows of the user's example, which may depend
        on each other, as the edges and the nodes of a graph do.
    """

    tensors: list[tf.Tensor]
    name: str
    may_fail: bool = False


def batches(signature: Signature, example: Any) -> Iterator[Batch]:
    """Makes the batches for a signature.

    Generated inputs have 1 and 3 rows where the batch is dynamic. An example is used as it is, and
    with 1 and 3 of its rows if all inputs have equally many.

    Args:
      signature: The signature.
      example: Values in the form of the signature's inputs; None to generate them.

    Raises:
      ExportError: The example doesn't match the specs, or nothing can be generated for a spec.
    """
    if example is None:
        specs = signature.specs.values()
        dynamic = any(spec.shape.rank and spec.shape[0] is None for spec in specs)
        _check_no_composite(signature)
        for size in _SIZES if dynamic else (1,):
            random = np.random.default_rng(0)
            tensors = [_random(name, spec, size, random) for name, spec in signature.specs.items()]
            yield Batch(tensors, f"a batch of {size}")
        return
    values = [
        _example_value(signature, name, value)
        for name, value in zip(signature.inputs, _example_values(signature, example), strict=True)
    ]
    yield Batch(unpack(values), "example_inputs")
    specs = list(signature.inputs.values())
    rows = {_rows(one) for one, spec in zip(values, specs, strict=True) if _is_dynamic(spec)}
    count = (rows.pop() or 0) if len(rows) == 1 else 0
    for size in _SIZES if count else ():
        kept = [i % count for i in range(size)]
        cut = [
            _take(one, kept) if _is_dynamic(spec) else one
            for one, spec in zip(values, specs, strict=True)
        ]
        yield Batch(unpack(cut), f"a batch of {size}", may_fail=True)


def _check_no_composite(signature: Signature) -> None:
    for name, spec in signature.inputs.items():
        if is_composite(spec):
            raise ExportError(
                f"No inputs can be generated for {name!r} of signature {signature.name!r}, which "
                f"is a {type(spec).__name__}. Pass example_inputs={{{signature.name!r}: ...}}, or "
                "verify=False."
            )


def _random(name: str, spec: tf.TensorSpec, size: int, random: np.random.Generator) -> tf.Tensor:
    # The stub says that a rank is an int.
    if spec.shape.rank is None:  # pyright: ignore[reportUnnecessaryComparison]
        raise ExportError(f"Input {name!r} has no known rank. Pass example_inputs, or a shape.")
    free = [size] + [_FREE_SIZE] * spec.shape.rank
    shape = [free[i] if size is None else size for i, size in enumerate(spec.shape)]
    if spec.dtype == tf.string:
        return tf.constant(random.choice([b"", b"a", b"two words"], shape))
    if spec.dtype.is_floating or spec.dtype.is_complex:
        return tf.cast(random.random(shape), spec.dtype)
    return tf.cast(random.integers(256 if spec.dtype == tf.uint8 else 2, size=shape), spec.dtype)


def _example_values(signature: Signature, example: Any) -> list[Any]:
    names = list(signature.inputs)
    form = signature.form(names)
    where = f"example_inputs of signature {signature.name!r}"
    if isinstance(form, dict):
        if not hasattr(example, "keys"):
            raise ExportError(
                f"{where} must be a mapping of {', '.join(names)}, got {type(example).__name__}."
            )
        if set(example) != set(names):
            raise ExportError(
                f"{where} has {', '.join(example)}, but the inputs are {', '.join(names)}."
            )
        return [example[name] for name in names]
    values = list(example) if isinstance(form, list | tuple) else [example]
    if len(values) != len(names):
        raise ExportError(f"{where} has {len(values)} values, but there are {len(names)} inputs.")
    return values


def _example_value(signature: Signature, name: str, value: Any) -> Any:
    spec = signature.inputs[name]
    if is_composite(spec):
        if not spec.is_compatible_with(value):
            raise ExportError(
                f"example_inputs: {name!r} is {_described(value)}, but the input is {spec}."
            )
        return value
    try:
        tensor = tf.convert_to_tensor(value, spec.dtype)
    except (ValueError, TypeError) as error:
        raise ExportError(
            f"example_inputs: {name!r} is no tensor of {spec.dtype.name}: {error} If its rows have "
            f"different lengths, make the input a tf.RaggedTensorSpec."
        ) from error
    if not spec.shape.is_compatible_with(tensor.shape):
        raise ExportError(
            f"example_inputs: {name!r} has shape {tensor.shape}, but the input has {spec.shape}."
        )
    return tensor


def _described(value: Any) -> str:
    return str(tf.type_spec_from_value(value)) if tf.is_tensor(value) else type(value).__name__


def _is_dynamic(spec: Any) -> bool:
    """Whether the rows of an input may be cut. Those of an extension type may be of any meaning."""
    shape = getattr(spec, "shape", None)
    if shape is None:
        return True
    return bool(shape.rank) and shape[0] is None


def _rows(value: Any) -> int | None:
    if isinstance(value, tf.RaggedTensor):
        return int(value.nrows())
    if isinstance(value, tf.SparseTensor):
        return int(value.dense_shape[0])
    return len(value) if isinstance(value, tf.Tensor) else 0


def _take(value: Any, kept: list[int]) -> Any:
    if not isinstance(value, tf.SparseTensor):
        return tf.gather(value, kept)
    rest = value.dense_shape[1:]
    parts = [
        tf.sparse.slice(
            value,
            tf.concat([tf.constant([row], tf.int64), tf.zeros_like(rest)], 0),
            tf.concat([tf.constant([1], tf.int64), rest], 0),
        )
        for row in kept
    ]
    return tf.sparse.concat(0, parts)
