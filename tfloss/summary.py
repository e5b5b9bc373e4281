"""Summaries that can be recorded anywhere in a model's training forward.

    tfloss.summary.scalar("accuracy", accuracy)
    tfloss.summary.image("inputs", batch["image"], max_outputs=4)
    with tfloss.summary.scope("rpn"):
        tfloss.summary.histogram("scores", scores)        # tag rpn/scores

The tag is the given name, regardless of name scopes, build order and replica. (TensorBoard shows
scalars without a group, such as `accuracy`, in the group `metrics`.) A call records a
tensor. When a log is due, the step returns it and the host writes it; otherwise the tensor is not
computed. Outside of training (evaluation, export, plain Keras) the calls do nothing. All functions
of this module run traced, in replica code.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Generator
from typing import Any, Literal

import tensorflow as tf

from tfloss.errors import SummaryError
from tfloss.forward.context import current_context
from tfloss.forward.recorded_summaries import RecordedSummary, Summary
from tfloss.forward.streaming_means import WEIGHT

__all__ = ["Summary", "draw", "histogram", "image", "scalar", "scope", "text"]


def scalar(
    name: str,
    value: Any,
    *,
    reduce: Literal["mean", "sum"] = "mean",
    every_step: bool = False,
    weight: Any = None,
) -> None:
    """Records a scalar, reduced over the replicas. Runs traced, in replica code.

    Args:
      name: Tag.
      value: Scalar of any real or bool dtype.
      reduce: Whether the mean or the sum over replicas is written.
      every_step: Whether the scalar is computed at every step, and its mean since the last log is
        written, as for losses. By default the value of the logged step is written.
      weight: Scalar: the number of examples, tokens or pixels that `value` is the mean of, on this
        replica. The scalar is then computed at every step, and the mean over all examples since the
        last log is written, on any number of replicas and micro-batches. If the weight is 0 in all
        of them, nothing is written.

    Raises:
      SummaryError: Value or weight is not a scalar, there is a weight with reduce="sum", the name
        was used before in this step, or the call is inside a `tf.cond`, loop or nested
        `tf.function`, which the tensor can't leave.
    """
    if reduce not in ("mean", "sum"):
        raise SummaryError(f"Summary {name!r}: reduce must be 'mean' or 'sum', got {reduce!r}.")
    if weight is not None and reduce == "sum":
        raise SummaryError(
            f"Summary {name!r} has a weight, so it is a mean, and can't have reduce='sum'."
        )
    if _is_needed(name, every_step or weight is not None):
        tensor = _scalar(value, f"Summary {name!r}", "Reduce it first, or use summary.histogram.")
        if weight is None:
            _record(RecordedSummary(name, "scalar", tensor, reduce))
            return
        advice = "Give the number of examples, such as tf.shape(labels)[0]."
        count = _scalar(weight, f"The weight of summary {name!r}", advice)
        # The mean of no examples is NaN, and counts nothing.
        total = tf.math.multiply_no_nan(tensor, count)
        _record(RecordedSummary(name, "scalar", total, "sum"))
        _record(RecordedSummary(name, "scalar", count, "sum"), WEIGHT)


def _scalar(value: Any, what: str, advice: str) -> tf.Tensor:
    tensor = tf.cast(value, tf.float32)
    if tensor.shape.rank not in (0, None):
        raise SummaryError(f"{what} is not a scalar: shape {tensor.shape}. {advice}")
    return tf.ensure_shape(tensor, [])


def histogram(name: str, value: Any, *, buckets: int | None = None) -> None:
    """Records the distribution of a tensor over all replicas. Runs traced, in replica code.

    Args:
      name: Tag.
      value: Tensor of any shape and any real or bool dtype.
      buckets: Number of buckets; that of `tf.summary.histogram` by default.

    Raises:
      SummaryError: The dtype is not numeric, or for the reasons that `scalar` gives.
    """
    if _is_needed(name):
        tensor = tf.reshape(tf.convert_to_tensor(value), [-1])
        if not (tensor.dtype.is_floating or tensor.dtype.is_integer or tensor.dtype.is_bool):
            raise SummaryError(
                f"Histogram {name!r} must have a numeric dtype, got {tensor.dtype.name}."
            )
        if tensor.dtype.is_bool or tensor.dtype in (tf.float16, tf.bfloat16):
            tensor = tf.cast(tensor, tf.float32)
        _record(RecordedSummary(name, "histogram", tensor, options={"buckets": buckets}))


def image(name: str, value: Any, *, max_outputs: int = 3) -> None:
    """Records images of the first replica. Runs traced, in replica code.

    Args:
      name: Tag.
      value: Images [batch, height, width, channels] with 1 to 4 channels, uint8 or float in
        [0, 1].
      max_outputs: Maximum number of images. The first ones of the batch are recorded.

    Raises:
      SummaryError: The rank is not 4, or for the reasons that `scalar` gives.
    """
    if _is_needed(name):
        tensor = tf.convert_to_tensor(value)
        if tensor.shape.rank not in (4, None):
            raise SummaryError(
                f"Image {name!r} must be [batch, height, width, channels], got shape "
                f"{tensor.shape}."
            )
        if tensor.dtype != tf.uint8:
            tensor = tf.cast(tensor, tf.float32)
        _record(RecordedSummary(name, "image", tensor[:max_outputs]))


def draw(name: str, function: Callable[..., Any], *tensors: Any) -> None:
    """Records images that are drawn on the host, with any library.

        tfloss.summary.draw("detections", drawing.draw_boxes, image[:2], boxes[:2], scores[:2])

    Runs traced, in replica code. The tensors leave the step like those of any summary, under XLA
    as well. `function` is called when the images are written, so never at a step that logs
    nothing. If it fails, training continues without the images, with one warning for each name.

    Args:
      name: Tag.
      function: Function from NumPy arrays to images [n, height, width, channels], uint8 or float
        in [0, 1]. All images are written. Host code.
      *tensors: Arguments of the function, those of the first replica. Slice a batch here, such as
        `image[:2]`, so that unused examples need not leave the device.

    Raises:
      SummaryError: There are no tensors, or for the reasons that `scalar` gives.
    """
    if not tensors:
        raise SummaryError(f"Drawing {name!r} has no tensors to draw.")
    if _is_needed(name):
        # Each tensor is recorded separately; `summaries_on_host` brings them together.
        for index, tensor in enumerate(tensors):
            options = {"draw": function, "more": index + 1 < len(tensors)}
            tensor = tf.convert_to_tensor(tensor)
            _record(RecordedSummary(name, "drawing", tensor, options=options), f":{index}")


def text(name: str, value: Any) -> None:
    """Records a string tensor of the first replica. Runs traced, in replica code.

    Args:
      name: Tag.
      value: Tensor in Markdown, any shape. Rank 1 and 2 become tables. Other dtypes than string
        are converted.

    Raises:
      SummaryError: For the reasons that `scalar` gives.
    """
    if _is_needed(name):
        tensor = tf.convert_to_tensor(value)
        if tensor.dtype != tf.string:
            tensor = tf.strings.as_string(tensor)
        _record(RecordedSummary(name, "text", tensor))


@contextlib.contextmanager
def scope(prefix: str) -> Generator[None]:
    """Adds `prefix/` to the tags of `tfloss.summary` calls inside. Runs traced, in replica code.

    Args:
      prefix: Prefix of the tags.

    Yields:
      None.
    """
    context = current_context()
    if context is None:
        yield
        return
    context.prefixes.append(prefix)
    try:
        yield
    finally:
        context.prefixes.pop()


def _is_needed(name: Any, every_step: bool = False) -> bool:
    """Returns whether to record the tensor. Raises at steps that are not logged as well."""
    context = current_context()
    if context is None:
        return False
    if not isinstance(name, str) or not name:
        raise SummaryError(f"The name of a summary must be a non-empty string, got {name!r}.")
    return context.claim(context.full_name(name)) and (context.recording or every_step)


def _record(recorded: RecordedSummary, part: str = "") -> None:
    """Records a summary under its full name. `part` tells the tensors of one summary apart."""
    context = current_context()
    assert context is not None  # `_is_needed` has returned True
    name = context.full_name(recorded.name)
    context.summaries[name + part] = dataclasses.replace(recorded, name=name)
