"""Summaries from anywhere in a model's training forward.

    tfloss.summary.scalar("accuracy", accuracy)
    tfloss.summary.image("inputs", batch["image"], max_outputs=4)
    with tfloss.summary.scope("rpn"):
        tfloss.summary.histogram("scores", scores)        # tag rpn/scores

A tag is the name given, whatever the name scopes, build order or replica. A call records a
tensor; the step returns it when the trainer's `log_every` is due and the host writes it.
When not due, nothing is computed. Outside of training (evaluation, export, plain Keras) the
calls do nothing. All of this module runs at trace time, in replica code.
"""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from tfloss.errors import SummaryError
from tfloss.forward.context import Recorded, current_context


@dataclasses.dataclass(frozen=True)
class Summary:
    """A summary on the host, ready to be written.

    kind and value:
      "histogram": an array of any shape; options["buckets"] may be an int.
      "image": [n, height, width, channels], float in [0, 1] or uint8.
      "text": an array of bytes.
      "raw": whatever `options["metadata"]` (a SummaryMetadata proto) says, for
        `tf.summary.write`.
    """

    name: str
    kind: str
    value: np.ndarray
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


def scalar(
    name: str,
    value: Any,
    *,
    reduce: Literal["mean", "sum"] = "mean",
    every_step: bool = False,
) -> None:
    """Records a scalar; over several replicas the mean (or sum) is written.

    Args:
      name: the tag.
      value: a scalar of any real or bool dtype.
      reduce: "mean" or "sum" over replicas.
      every_step: compute it on every step and write the mean over the logging window,
        as losses are. By default it is the value of the step that is due.

    Raises:
      SummaryError: not a scalar, recorded twice in a step, or inside a `tf.cond`, loop or
        nested `tf.function` that it can't leave.
    """
    if reduce not in ("mean", "sum"):
        raise SummaryError(f"Summary {name!r}: reduce must be 'mean' or 'sum', got {reduce!r}.")
    if _wanted(name, every_step):
        tensor = tf.cast(value, tf.float32)
        if tensor.shape.rank not in (0, None):
            raise SummaryError(
                f"Summary {name!r} is not a scalar: shape {tensor.shape}. Reduce it first, or "
                "use tfloss.summary.histogram."
            )
        _record(Recorded(name, "scalar", tf.ensure_shape(tensor, []), reduce))


def histogram(name: str, value: Any, *, buckets: int | None = None) -> None:
    """Records the distribution of a numeric tensor of any shape, over all replicas.

    Raises SummaryError as `scalar` does.
    """
    if _wanted(name):
        tensor = tf.reshape(tf.convert_to_tensor(value), [-1])
        if not (tensor.dtype.is_floating or tensor.dtype.is_integer or tensor.dtype.is_bool):
            raise SummaryError(f"Histogram {name!r} can't show dtype {tensor.dtype.name}.")
        if tensor.dtype.is_bool or tensor.dtype in (tf.float16, tf.bfloat16):
            tensor = tf.cast(tensor, tf.float32)
        _record(Recorded(name, "histogram", tensor, options={"buckets": buckets}))


def image(name: str, value: Any, *, max_outputs: int = 3) -> None:
    """Records up to `max_outputs` images of replica 0.

    Args:
      name: the tag.
      value: [batch, height, width, channels], 1 to 4 channels, uint8 or float in [0, 1].
      max_outputs: how many of the batch are kept.

    Raises SummaryError as `scalar` does, and for another rank.
    """
    if _wanted(name):
        tensor = tf.convert_to_tensor(value)
        if tensor.shape.rank not in (4, None):
            raise SummaryError(
                f"Image {name!r} must be [batch, height, width, channels], got shape "
                f"{tensor.shape}."
            )
        if tensor.dtype != tf.uint8:
            tensor = tf.cast(tensor, tf.float32)
        _record(Recorded(name, "image", tensor[:max_outputs]))


def draw(name: str, function: Callable[..., Any], *tensors: Any) -> None:
    """Records images that are drawn on the host, by any library.

        tfloss.summary.draw("detections", drawing.draw_boxes, image[:2], boxes[:2], scores[:2])

    The tensors leave the step like any summary, under XLA too. `function` is called when they are
    written, never in a step that writes nothing. If it fails, a warning says so, once for each
    name, and training goes on without the picture.

    Args:
      name: the tag.
      function: `(*arrays) -> images`, NumPy arrays [n, height, width, channels], uint8 or float in
        [0, 1]; all of them are written. Host code.
      *tensors: what it is given, replica 0's. Take `[:n]` of a batch here: what isn't drawn need
        not leave the device.

    Raises SummaryError as `scalar` does, and without tensors.
    """
    if not tensors:
        raise SummaryError(f"Drawing {name!r} has no tensors to draw.")
    if _wanted(name):
        # Each tensor travels alone; `on_host` puts them together again.
        for number, tensor in enumerate(tensors):
            options = {"draw": function, "more": number + 1 < len(tensors)}
            tensor = tf.convert_to_tensor(tensor)
            _record(Recorded(f"{name}:{number}", "drawing", tensor, options=options))


def text(name: str, value: Any) -> None:
    """Records a string tensor of replica 0 (Markdown; rank 1 and 2 become tables).

    Raises SummaryError as `scalar` does.
    """
    if _wanted(name):
        tensor = tf.convert_to_tensor(value)
        if tensor.dtype != tf.string:
            tensor = tf.strings.as_string(tensor)
        _record(Recorded(name, "text", tensor))


@contextlib.contextmanager
def scope(prefix: str) -> Iterator[None]:
    """Puts `prefix/` before the tags of the `tfloss.summary` calls inside, in this replica."""
    context = current_context()
    if context is None:
        yield
        return
    context.prefixes.append(prefix)
    try:
        yield
    finally:
        context.prefixes.pop()


def on_host(recorded: Sequence[Recorded], tensors: Sequence[Any]) -> tuple[Summary, ...]:
    """What a step has recorded, with its tensors' values: drawings are drawn. Host code."""
    found, parts = [], []
    for one, tensor in zip(recorded, tensors, strict=True):
        if one.kind != "drawing":
            found.append(Summary(one.name, one.kind, tensor.numpy(), one.options))
            continue
        parts.append(tensor.numpy())
        if not one.options["more"]:
            name = one.name.rpartition(":")[0]
            images = drawn(name, one.options["draw"], *parts)
            if images is not None:
                found.append(Summary(name, "image", images))
            parts = []
    return tuple(found)


_failed: set[str] = set()  # drawings that were reported, by name


def drawn(name: str, function: Callable[..., Any], *values: Any) -> np.ndarray | None:
    """What `function(*values)` draws, or None with a warning, once a name, if it fails. Host."""
    try:
        images = np.asarray(function(*values))
        if images.ndim != 4:
            raise ValueError(f"it returned shape {images.shape}, not [n, height, width, channels]")
        return images
    except Exception as error:  # a picture is not worth a training run
        if name not in _failed:
            _failed.add(name)
            shapes = tf.nest.map_structure(np.shape, values)
            warnings.warn(
                f"Summary {name!r} can't be drawn: {getattr(function, '__name__', function)} fails "
                f"for arrays of shapes {shapes}: {type(error).__name__}: {error}. Training goes on "
                "without it.",
                stacklevel=2,
            )
        return None


def _wanted(name: str, every_step: bool = False) -> bool:
    """Whether the tensor is to be made. Misuse is reported on silent steps too."""
    context = current_context()
    if context is None:
        return False
    if not isinstance(name, str) or not name:
        raise SummaryError(f"A summary's name must be a non-empty string, got {name!r}.")
    return context.claim(context.full_name(name)) and (context.recording or every_step)


def _record(recorded: Recorded) -> None:
    context = current_context()
    assert context is not None  # _wanted() said so
    name = context.full_name(recorded.name)
    context.summaries[name] = dataclasses.replace(recorded, name=name)
