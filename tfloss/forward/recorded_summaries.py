"""Summaries that a step has recorded: as tensors in its graph, and as arrays on the host."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from tfloss.inspect.source_lines import error_line
from tfloss.inspect.traceback_filtering import short_message


@dataclasses.dataclass(frozen=True)
class RecordedSummary:
    """One summary of one replica, as a tensor of the step. Traced.

    Attributes:
      name: Tag, with the prefixes of `tfloss.summary.scope`.
      kind: "scalar", "histogram", "image", "text", "drawing" (one of the tensors that are drawn),
        or "raw" (a plain `tf.summary` call).
      value: Value on this replica, of any shape and dtype.
      reduce: How scalars of several replicas are combined.
      options: Further options of the kind.
    """

    name: str
    kind: str
    value: tf.Tensor
    reduce: Literal["mean", "sum"] = "mean"
    options: dict[str, Any] = dataclasses.field(default_factory=dict[str, Any])


@dataclasses.dataclass(frozen=True)
class Summary:
    """A summary on the host, as `Hook.on_log` gets it.

    Attributes:
      name: Tag.
      kind: "histogram", "image", "text" or "raw". Scalars are passed to hooks separately.
      value: By kind: an array of any shape ("histogram"); [n, height, width, channels], uint8 or
        float in [0, 1] ("image"); an array of bytes ("text"); an array for `tf.summary.write`
        ("raw").
      options: "buckets" of a histogram, an int or None; "counted" of a histogram whose value is
        float64 [buckets, 3], the edges and the count of each bucket; "metadata" of a raw summary, a
        SummaryMetadata proto.
    """

    name: str
    kind: str
    value: np.ndarray
    options: dict[str, Any] = dataclasses.field(default_factory=dict[str, Any])


def summaries_on_host(
    recorded: Sequence[RecordedSummary], tensors: Sequence[Any]
) -> tuple[Summary, ...]:
    """Converts what a step has recorded to summaries, and draws drawings. Runs on the host.

    Args:
      recorded: The recorded summaries, in the order of the trace.
      tensors: Eager tensor of each.

    Returns:
      The summaries, in the same order. Drawings become images; those that fail are left out.
    """
    found: list[Summary] = []
    arrays: list[Any] = []
    for summary, tensor in zip(recorded, tensors, strict=True):
        if summary.kind != "drawing":
            found.append(Summary(summary.name, summary.kind, tensor.numpy(), summary.options))
            continue
        arrays.append(tensor.numpy())
        if not summary.options["more"]:
            images = draw_images(summary.name, summary.options["draw"], *arrays)
            if images is not None:
                found.append(Summary(summary.name, "image", images))
            arrays = []
    return tuple(found)


_failed: set[str] = set()  # names of drawings whose failure was reported


def draw_images(name: str, function: Callable[..., Any], *values: Any) -> np.ndarray | None:
    """Draws images. If it fails, warns once for each name. Runs on the host.

    Args:
      name: Name of the summary.
      function: Function from the values to images [n, height, width, channels].
      *values: Arguments of the function, nests of NumPy arrays.

    Returns:
      The images, or None if the function fails.
    """
    try:
        images = np.asarray(function(*values))
        if images.ndim != 4:
            raise ValueError(f"it returned shape {images.shape}, not [n, height, width, channels]")
        return images
    except Exception as error:  # an image is not worth a training run
        if name not in _failed:
            _failed.add(name)
            shapes = tf.nest.map_structure(np.shape, values)
            warnings.warn(
                f"Summary {name!r} can't be drawn: {getattr(function, '__name__', function)} fails "
                f"for arrays of shapes {shapes}, at {error_line(error)}: {type(error).__name__}: "
                f"{short_message(str(error))}. Training continues without it.",
                stacklevel=2,
            )
        return None
