"""What an export must be: free of ops that belong to training, and equal to the model."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from tfloss import _upstream
from tfloss.errors import ExportError
from tfloss.inspect.source_lines import traceback_line
from tfloss.inspect.traced_ops import operations

if TYPE_CHECKING:
    from tfloss.saved_model.signature import Predict, Signature

# (types of ops, what they do, the remedy)
_FORBIDDEN = (
    (
        _upstream.SUMMARY_OPS,
        "writes a summary",
        "Use tfloss.summary, which does nothing in inference.",
    ),
    (_upstream.COLLECTIVE_OPS, "waits for other replicas", "Do it only if training."),
    (
        _upstream.VARIABLE_WRITE_OPS | _upstream.REF_VARIABLE_WRITE_OPS | _upstream.TABLE_WRITE_OPS,
        "changes a variable, as BatchNormalization or Dropout do in training",
        "Do it only if training, and pass `training` on to the layers.",
    ),
    (
        _upstream.PYTHON_OPS,
        "calls Python, which other processes can't",
        "Write it with TensorFlow ops, or do it before the model.",
    ),
)
_RANDOM = (
    "draws random numbers",
    "Draw them only if training, or by tf.random.stateless_* from a seed that is an input.",
)
_HALF = {tf.float16, tf.bfloat16}

_BATCHES = (1, 3)
_FREE_SIZE = 64  # of made-up inputs where a dimension other than the batch is dynamic


def check_ops(name: str, graph: Any, traced_here: bool = False) -> bool:
    """Raises ExportError for an op that has no place in an inference graph.

    Args:
      name: of the signature.
      graph: a `tf.Graph`. Functions that it calls are looked at too.
      traced_here: whether the graph's tracebacks lead to the model's source.

    Returns:
      Whether the graph computes in half precision.
    """
    half = False
    for op, _ in operations(graph):
        half = half or any(tensor.dtype in _HALF for tensor in (*op.inputs, *op.outputs))
        if problem := _problem(op):
            does, remedy = problem
            where = f", made at {traceback_line(op.traceback)}," if traced_here else ""
            raise ExportError(
                f"Op {op.name!r} ({op.type}) in the inference forward (signature {name!r}){where} "
                f"{does}. {remedy}"
            )
    return half


def _problem(op: tf.Operation) -> tuple[str, str] | None:
    """What an op does that has no place in inference, and the remedy."""
    if _upstream.op_state(op) in ("kernel", "generator"):
        return _RANDOM
    for types, does, remedy in _FORBIDDEN:
        if op.type in types:
            return does, remedy
    return None


def verify_signature(
    signature: "Signature", reloaded: Any, forward: "Predict", example: Any, tolerance: float
) -> None:
    """Raises ExportError where the reloaded signature and the model disagree.

    Args:
      signature: which one.
      reloaded: the same as a function of a loaded SavedModel.
      forward: the model, run eagerly.
      example: input arrays in the form of the signature's specs, or None to make them up.
      tolerance: see `tfloss.export`.
    """
    dynamic = any(spec.shape.rank and spec.shape[0] is None for spec in signature.specs.values())
    for batch in _BATCHES if dynamic else (1,):
        tensors = _feed(signature, example, batch)
        with _full_precision():
            try:
                expected = forward(signature, tensors)
            except ExportError:
                raise
            except Exception as error:
                if example is not None:
                    raise
                raise ExportError(
                    f"The model can't be run on inputs made up from the specs of signature "
                    f"{signature.name!r} (batch of {batch}): {_first_line(error)}. Pass some that "
                    f"it can: example_inputs={{{signature.name!r}: ...}}; or verify=False."
                ) from error
            actual = reloaded(**dict(zip(signature.specs, tensors, strict=True)))
        for name, tensor in expected.items():
            if problem := _difference(tensor.numpy(), actual[name].numpy(), tolerance):
                raise ExportError(
                    f"The export disagrees with the model: output {name!r} of signature "
                    f"{signature.name!r} {problem} on a batch of {batch}. Predictions must follow "
                    "from the inputs alone (no Python state, no random numbers). If it is only "
                    "rounding, or near ties before an argmax or NMS on made-up inputs, pass "
                    "example_inputs or a tolerance."
                )


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Without TensorFloat-32, by which a GPU rounds eager code and graphs differently."""
    config = tf.config.experimental
    before = config.tensor_float_32_execution_enabled()
    config.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        config.enable_tensor_float_32_execution(before)


def _difference(expected: np.ndarray, actual: np.ndarray, tolerance: float) -> str | None:
    """What is wrong with an output, as the end of a sentence, or None."""
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
    if largest <= allowed:  # not so if it is NaN
        return None
    return f"differs by up to {largest:.3g} (allowed: {allowed:.3g})"


def _feed(signature: "Signature", example: Any, batch: int) -> list[tf.Tensor]:
    """Tensors for the signature's inputs, in order, with this batch where it is dynamic."""
    if example is None:
        random = np.random.default_rng(0)
        return [_made_up(name, spec, batch, random) for name, spec in signature.specs.items()]
    return [
        _of_example(name, spec, value, batch)
        for (name, spec), value in zip(
            signature.specs.items(), _example_values(signature, example), strict=True
        )
    ]


def _made_up(name: str, spec: tf.TensorSpec, batch: int, random: Any) -> tf.Tensor:
    if spec.shape.rank is None:
        raise ExportError(f"Input {name!r} has no known rank: pass example_inputs, or a shape.")
    free = [batch] + [_FREE_SIZE] * spec.shape.rank
    shape = [free[i] if size is None else size for i, size in enumerate(spec.shape)]
    if spec.dtype == tf.string:
        return tf.constant(random.choice([b"", b"a", b"two words"], shape))
    if spec.dtype.is_floating or spec.dtype.is_complex:
        return tf.cast(random.random(shape), spec.dtype)
    return tf.cast(random.integers(256 if spec.dtype == tf.uint8 else 2, size=shape), spec.dtype)


def _example_values(signature: "Signature", example: Any) -> list[Any]:
    form = signature.form(list(signature.specs))
    if isinstance(form, dict):
        if set(example) != set(signature.specs):
            raise ExportError(
                f"example_inputs of signature {signature.name!r} has {', '.join(example)}, but the "
                f"inputs are {', '.join(signature.specs)}."
            )
        return [example[name] for name in signature.specs]
    return list(example) if isinstance(form, list | tuple) else [example]


def _of_example(name: str, spec: tf.TensorSpec, value: Any, batch: int) -> tf.Tensor:
    tensor = tf.convert_to_tensor(value, spec.dtype)
    if not spec.shape.is_compatible_with(tensor.shape):
        raise ExportError(
            f"example_inputs: {name!r} has shape {tensor.shape}, but the input's is {spec.shape}."
        )
    if spec.shape.rank and spec.shape[0] is None:
        tensor = tf.gather(tensor, [i % len(tensor) for i in range(batch)])
    return tensor


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
