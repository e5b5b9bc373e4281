"""Compares the signatures of a loaded SavedModel with the model that it was exported from. Host."""

import contextlib
from collections.abc import Generator
from typing import Any

import numpy as np
import tensorflow as tf

from tfloss.errors import ExportError
from tfloss.saved_model.signature import Predict, Signature

_BATCH_SIZES = (1, 3)
_FREE_SIZE = 64  # of generated inputs where a dimension other than the batch is dynamic


def verify_signature(
    signature: Signature, loaded: Any, forward: Predict, example: Any, tolerance: float
) -> None:
    """Checks that a loaded signature and the model have equal outputs.

    Args:
      signature: The signature.
      loaded: The signature's function in the loaded SavedModel.
      forward: The model's inference forward, which runs eagerly here.
      example: Input arrays in the form of the signature's specs; None to generate them.
      tolerance: The largest difference allowed, see `tfloss.export`.

    Raises:
      ExportError: The outputs differ, the model can't be run on generated inputs, or the example
        doesn't match the specs.
    """
    dynamic = any(spec.shape.rank and spec.shape[0] is None for spec in signature.specs.values())
    for batch_size in _BATCH_SIZES if dynamic else (1,):
        tensors = _input_tensors(signature, example, batch_size)
        with _without_tensor_float_32():
            try:
                expected = forward(signature, tensors)
            except ExportError:
                raise
            except Exception as error:
                if example is not None:
                    raise
                raise ExportError(
                    f"The model can't be run on inputs generated from the specs of signature "
                    f"{signature.name!r} (batch of {batch_size}): {_first_line(error)}. Pass "
                    f"inputs that it can process, example_inputs={{{signature.name!r}: ...}}, or "
                    "verify=False."
                ) from error
            actual = loaded(**dict(zip(signature.specs, tensors, strict=True)))
        for name, tensor in expected.items():
            if problem := _difference(tensor.numpy(), actual[name].numpy(), tolerance):
                raise ExportError(
                    f"The export disagrees with the model: output {name!r} of signature "
                    f"{signature.name!r} {problem} on a batch of {batch_size}. Predictions must "
                    "depend only on the inputs, not on Python state or random numbers. If the "
                    "difference is only rounding, or a near tie before an argmax or NMS on "
                    "generated inputs, pass example_inputs or a tolerance."
                )


@contextlib.contextmanager
def _without_tensor_float_32() -> Generator[None]:
    """Switches off TensorFloat-32, by which a GPU rounds eager code and graphs differently."""
    config = tf.config.experimental
    before = config.tensor_float_32_execution_enabled()
    config.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        config.enable_tensor_float_32_execution(before)


def _difference(expected: np.ndarray, actual: np.ndarray, tolerance: float) -> str | None:
    """Describes the difference of an output, as the end of a sentence; None if it is allowed."""
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return (
            f"is {actual.dtype}{list(actual.shape)} instead of "
            f"{expected.dtype}{list(expected.shape)}"
        )
    same = actual == expected
    if expected.dtype.kind not in "fc":
        return None if np.all(same) else f"differs in {np.sum(~same)} of {same.size} values"
    same |= np.isnan(actual) & np.isnan(expected)
    if np.all(same):
        return None
    finite = np.abs(expected[np.isfinite(expected)])
    allowed = tolerance * max(0.01, finite.max(initial=0.0))
    with np.errstate(invalid="ignore"):
        largest = np.max(np.abs(actual - expected), where=~same, initial=0.0)
    if largest <= allowed:  # false if it is NaN
        return None
    return f"differs by up to {largest:.3g} (allowed: {allowed:.3g})"


def _input_tensors(signature: Signature, example: Any, batch_size: int) -> list[tf.Tensor]:
    """Makes tensors for the inputs, in order, of this batch size where the batch is dynamic."""
    if example is None:
        random = np.random.default_rng(0)
        return [
            _random_tensor(name, spec, batch_size, random) for name, spec in signature.specs.items()
        ]
    values = _example_values(signature, example)
    return [
        _example_tensor(name, spec, value, batch_size)
        for (name, spec), value in zip(signature.specs.items(), values, strict=True)
    ]


def _random_tensor(
    name: str, spec: tf.TensorSpec, batch_size: int, random: np.random.Generator
) -> tf.Tensor:
    # The stub says that a rank is an int.
    if spec.shape.rank is None:  # pyright: ignore[reportUnnecessaryComparison]
        raise ExportError(f"Input {name!r} has no known rank. Pass example_inputs, or a shape.")
    free = [batch_size] + [_FREE_SIZE] * spec.shape.rank
    shape = [free[i] if size is None else size for i, size in enumerate(spec.shape)]
    if spec.dtype == tf.string:
        return tf.constant(random.choice([b"", b"a", b"two words"], shape))
    if spec.dtype.is_floating or spec.dtype.is_complex:
        return tf.cast(random.random(shape), spec.dtype)
    return tf.cast(random.integers(256 if spec.dtype == tf.uint8 else 2, size=shape), spec.dtype)


def _example_values(signature: Signature, example: Any) -> list[Any]:
    form = signature.form(list(signature.specs))
    if isinstance(form, dict):
        if set(example) != set(signature.specs):
            raise ExportError(
                f"example_inputs of signature {signature.name!r} has {', '.join(example)}, but the "
                f"inputs are {', '.join(signature.specs)}."
            )
        return [example[name] for name in signature.specs]
    return list(example) if isinstance(form, list | tuple) else [example]


def _example_tensor(name: str, spec: tf.TensorSpec, value: Any, batch_size: int) -> tf.Tensor:
    tensor = tf.convert_to_tensor(value, spec.dtype)
    if not spec.shape.is_compatible_with(tensor.shape):
        raise ExportError(
            f"example_inputs: {name!r} has shape {tensor.shape}, but the input has {spec.shape}."
        )
    if spec.shape.rank and spec.shape[0] is None:
        tensor = tf.gather(tensor, [i % len(tensor) for i in range(batch_size)])
    return tensor


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
