"""Compares the signatures of a loaded SavedModel with the model that it was exported from. Host."""

import contextlib
from collections.abc import Generator
from typing import Any

import numpy as np
import tensorflow as tf

from tfloss.errors import ExportError
from tfloss.saved_model.signature import Predict, Signature
from tfloss.saved_model.verification_batches import batches


def verify_signature(
    signature: Signature, loaded: Any, forward: Predict, example: Any, tolerance: float
) -> None:
    """Checks that a loaded signature and the model have equal outputs.

    Args:
      signature: The signature.
      loaded: The signature's function in the loaded SavedModel.
      forward: The model's inference forward, which runs eagerly here.
      example: Values in the form of the signature's inputs; None to generate them.
      tolerance: The largest difference allowed, see `tfloss.export`.

    Raises:
      ExportError: The outputs differ, the export fails, the model can't be run on generated
        inputs, or the example doesn't match the specs.
    """
    for batch in batches(signature, example):
        with _without_tensor_float_32():
            try:
                expected = forward(signature, batch.tensors)
            except ExportError:
                raise
            except Exception as error:
                if batch.may_fail:
                    continue
                if example is not None:
                    raise
                raise ExportError(
                    f"The model can't be run on inputs generated from the specs of signature "
                    f"{signature.name!r} ({batch.name}): {_first_line(error)}. Pass "
                    f"inputs that it can process, example_inputs={{{signature.name!r}: ...}}, or "
                    "verify=False."
                ) from error
            try:
                actual = loaded(**dict(zip(signature.specs, batch.tensors, strict=True)))
            except tf.errors.OpError as error:
                raise ExportError(
                    f"The export of signature {signature.name!r} fails on {batch.name}, which the "
                    f"model accepts: {_first_line(error)}. A size of the batch may be a constant "
                    "in the graph: use tf.shape(x)[0] instead of x.shape[0] or len(x)."
                ) from error
        for name, tensor in expected.items():
            if problem := _difference(tensor.numpy(), actual[name].numpy(), tolerance):
                raise ExportError(
                    f"The export disagrees with the model: output {name!r} of signature "
                    f"{signature.name!r} {problem} on {batch.name}. Predictions must "
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


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
