"""Scalars and summaries as TensorBoard events, serialized.

    ScalarEvents().serialized(100, 1760000000.25, {"losses/total": 0.43})
    summary_event(100, 1760000000.25, Summary("x", "histogram", values))

The tensors and their metadata are those of `tf.summary.histogram`, `image` and `text`, which can
write to a `tf.summary` writer only. All of this module is host code.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfloss.summary import Summary

_PART = 1 << 15  # values of a histogram that are counted together
_DEFAULT_BUCKETS = 30  # as in tf.summary.histogram
_TensorProto = type(tf.compat.v1.Summary.Value().tensor)


class ScalarEvents:
    """Serializes the scalars of a step as one event. Host.

    A scalar is a plain number, which TensorBoard reads like one of `tf.summary.scalar`, whose
    tensors take twice as long to write. An event with the same names is filled again, since making
    one takes ten times as long.
    """

    def __init__(self) -> None:
        self._events: dict[tuple[str, ...], Any] = {}  # by names

    def serialized(self, step: int, wall_time: float, scalars: Mapping[str, float]) -> bytes:
        """Serializes the scalars of a step.

        Args:
          step: Step of the event.
          wall_time: Seconds since 1970.
          scalars: Values by tag.

        Returns:
          The serialized event.
        """
        names = tuple(scalars)
        event = self._events.get(names)
        if event is None:
            event = self._events[names] = tf.compat.v1.Event()
            for name in names:
                event.summary.value.add(tag=name)
        event.step, event.wall_time = step, wall_time
        for entry, value in zip(event.summary.value, scalars.values(), strict=True):
            entry.simple_value = value
        return event.SerializeToString()


def summary_event(step: int, wall_time: float, summary: Summary) -> bytes:
    """Serializes a summary as one event.

    Args:
      step: Step of the event.
      wall_time: Seconds since 1970.
      summary: The summary, on the host.

    Returns:
      The serialized event.

    Raises:
      ValueError: The kind of the summary is unknown, or its images don't have four dimensions.
    """
    name, value, options = summary.name, summary.value, summary.options
    if summary.kind == "histogram":
        counted = options.get("counted", False)
        table = value if counted else _histogram(value, options.get("buckets"))
        plugin, tensor = "histograms", _double_proto(table)
    elif summary.kind == "image":
        plugin, tensor = "images", _images(name, value)
    elif summary.kind == "text":
        plugin, tensor = "text", tf.make_tensor_proto(value, dtype=tf.string)
    elif summary.kind == "raw":
        plugin, tensor = None, tf.make_tensor_proto(value)
    else:
        raise ValueError(
            f"Summary {name!r} has the kind {summary.kind!r}; TensorBoard can write "
            "'histogram', 'image', 'text' and 'raw'."
        )
    event = tf.compat.v1.Event(step=step, wall_time=wall_time)
    entry = event.summary.value.add(tag=name, tensor=tensor)
    if plugin is not None:
        entry.metadata.plugin_data.plugin_name = plugin
    elif options["metadata"] is not None:
        # TensorBoard has a message class of its own, with the same fields.
        entry.metadata.ParseFromString(options["metadata"].SerializeToString())
    return event.SerializeToString()


def _double_proto(value: np.ndarray) -> Any:
    """Makes a tensor of float64, in a fraction of the time of `tf.make_tensor_proto`."""
    found = _TensorProto(dtype=tf.float64.as_datatype_enum)
    for size in value.shape:
        found.tensor_shape.dim.add(size=size)
    found.tensor_content = np.ascontiguousarray(value, "<f8").tobytes()
    return found


def _histogram(values: np.ndarray, buckets: int | None) -> np.ndarray:
    """Returns float64 [buckets, 3]: left edge, right edge and count of each bucket.

    The last bucket includes its right edge. Values that are all equal are in the last bucket. NaN
    is in none.
    """
    data = np.asarray(values).ravel()
    count = max(_DEFAULT_BUCKETS if buckets is None else buckets, 0)
    table = np.zeros([count, 3])
    if count and data.size:
        low, high = np.float64(data.min()), np.float64(data.max())
        if low == high:
            table[:, :2], table[-1, 2] = high, data.size
        else:
            with np.errstate(invalid="ignore"):  # infinity
                edges = np.linspace(low, high, count + 1)
                table[:, 2] = _counts(data, low, (high - low) / count, count)
            edges[0] = low  # linspace makes NaN of it if there is infinity
            table[:, 0], table[:, 1] = edges[:-1], edges[1:]
    return table


def _counts(data: np.ndarray, low: np.float64, width: np.float64, count: int) -> np.ndarray:
    """Counts the values in buckets of one width."""
    # Parts that fit the processor's cache take a quarter of the time of a million values at once.
    found = np.zeros(count, np.int64)
    for start in range(0, data.size, _PART):
        index = data[start : start + _PART].astype(np.float64)
        index -= low
        index /= width
        if not 0 < width < np.inf:
            index = index[np.isfinite(index)]
        # Not below 0, so that the conversion rounds down.
        found += np.bincount(np.minimum(index.astype(np.int64), count - 1), minlength=count)
    return found


def _images(name: str, images: np.ndarray) -> Any:
    """Returns a tensor of strings: width, height, and each image as a PNG."""
    if np.ndim(images) != 4:
        raise ValueError(
            f"Summary {name!r} must have images [n, height, width, channels], but has shape "
            f"{np.shape(images)}."
        )
    _, height, width, _ = images.shape
    with tf.device("CPU:0"):
        pixels = tf.image.convert_image_dtype(images, tf.uint8, saturate=True)
        encoded = [tf.io.encode_png(one).numpy() for one in pixels]
    return tf.make_tensor_proto([str(width).encode(), str(height).encode(), *encoded])
