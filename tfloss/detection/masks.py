"""Rasterizes polygons into the bit masks that a mask loss needs. Traced or eager."""

from typing import Any

import tensorflow as tf


def rasterize(polygons: Any, boxes: Any, mask_size: int) -> tf.Tensor:
    """Rasterizes each polygon within its box, without an intermediate image.

    A cell is 1 if its centre lies inside the polygon, by the even-odd rule. A polygon may extend
    beyond its box. Repeating a corner, as padding does, does not change the mask. Runs traced or
    eagerly.

    Args:
      polygons: Polygon corners (y, x), [..., P, 2], in pixels. The last corner is joined to the
        first.
      boxes: Boxes, [..., 4], in pixels.
      mask_size: Number of rows and of columns of the mask.

    Returns:
      Masks, float32 [..., mask_size, mask_size], with values 0 and 1.
    """
    polygons, boxes = tf.cast(polygons, tf.float32), tf.cast(boxes, tf.float32)
    steps = (tf.range(mask_size, dtype=tf.float32) + 0.5) / mask_size
    ymin, xmin, ymax, xmax = (boxes[..., i, tf.newaxis] for i in range(4))
    rows, columns = ymin + (ymax - ymin) * steps, xmin + (xmax - xmin) * steps  # [..., mask_size]
    start, end = polygons, tf.roll(polygons, 1, axis=-2)
    y0, x0, y1, x1 = start[..., 0], start[..., 1], end[..., 0], end[..., 1]  # [..., P]
    row = rows[..., tf.newaxis]
    y0, x0, y1, x1 = (v[..., tf.newaxis, :] for v in (y0, x0, y1, x1))
    crosses = (y0 <= row) != (y1 <= row)  # [..., row, P]: whether the row crosses the edge
    crossing = x0 + tf.math.divide_no_nan((row - y0) * (x1 - x0), y1 - y0)
    left = columns[..., tf.newaxis, :, tf.newaxis] < crossing[..., tf.newaxis, :]
    counted = crosses[..., tf.newaxis, :] & left  # [..., row, column, P]
    return tf.cast(tf.math.floormod(tf.math.count_nonzero(counted, -1), 2), tf.float32)
