"""Anchors: the boxes that a dense head's offsets start from. Host code."""

from collections.abc import Sequence

import numpy as np


def anchors(
    image_size: tuple[int, int],
    strides: Sequence[int],
    sizes: Sequence[Sequence[float]],
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
) -> np.ndarray:
    """The anchors of all levels of a feature pyramid (Lin et al. 2017, arXiv:1612.03144).

    Args:
      image_size: (height, width) in pixels.
      strides: of each level; a level has ceil(height / stride) x ceil(width / stride) cells.
      sizes: for each level, the square roots of its anchors' areas, in pixels.
      ratios: height / width.

    Returns:
      float32 [A, 4]. In order: levels, rows, columns, then sizes times ratios, which is how a
      convolution's output [n, rows, columns, sizes * ratios] is laid out when reshaped.

    Raises:
      ValueError: not as many sizes as strides, or not as many of them on each level.
    """
    if len(sizes) != len(strides):
        raise ValueError(f"{len(strides)} strides need as many lists of sizes, got {len(sizes)}.")
    if len({len(each) for each in sizes}) > 1:
        raise ValueError(f"One head is shared, so all levels need as many sizes. Received: {sizes}")
    levels = []
    for stride, each in zip(strides, sizes, strict=True):
        height = np.outer(each, np.sqrt(ratios)).ravel()
        width = np.outer(each, 1 / np.sqrt(ratios)).ravel()
        around = np.stack([-height, -width, height, width], -1) / 2
        rows, columns = (-(-size // stride) for size in image_size)
        y, x = np.meshgrid(np.arange(rows) + 0.5, np.arange(columns) + 0.5, indexing="ij")
        centres = np.stack([y, x, y, x], -1)[:, :, np.newaxis] * stride
        levels.append((centres + around).reshape(-1, 4))
    return np.concatenate(levels).astype(np.float32)
