"""Polygons as the bit masks that a mask loss needs. Traced or eager."""

from typing import Any

import tensorflow as tf


def rasterise(polygons: Any, boxes: Any, size: int) -> tf.Tensor:
    """Draws each polygon straight into its box's grid, without an image in between.

    A cell is 1 where its centre lies inside, by the even-odd rule. A polygon may be cut by its
    box. Padding a polygon by repeating a point changes nothing.

    Args:
      polygons: [..., P, 2], corners (y, x) in pixels; the last is joined to the first.
      boxes: [..., 4] in pixels.
      size: cells of the grid in each direction.

    Returns:
      float32 [..., size, size] of 0 and 1.
    """
    polygons, boxes = tf.cast(polygons, tf.float32), tf.cast(boxes, tf.float32)
    steps = (tf.range(size, dtype=tf.float32) + 0.5) / size
    ymin, xmin, ymax, xmax = (boxes[..., i, tf.newaxis] for i in range(4))
    rows, columns = ymin + (ymax - ymin) * steps, xmin + (xmax - xmin) * steps  # [..., size]
    start, end = polygons, tf.roll(polygons, 1, axis=-2)
    y0, x0, y1, x1 = start[..., 0], start[..., 1], end[..., 0], end[..., 1]  # [..., P]
    row = rows[..., tf.newaxis]
    y0, x0, y1, x1 = (v[..., tf.newaxis, :] for v in (y0, x0, y1, x1))
    crosses = (y0 <= row) != (y1 <= row)  # [..., size, P]: edge P is met by the row
    at = x0 + tf.math.divide_no_nan((row - y0) * (x1 - x0), y1 - y0)
    right = columns[..., tf.newaxis, :, tf.newaxis] < at[..., tf.newaxis, :]
    met = crosses[..., tf.newaxis, :] & right  # [..., row, column, P]
    return tf.cast(tf.math.floormod(tf.math.count_nonzero(met, -1), 2), tf.float32)
