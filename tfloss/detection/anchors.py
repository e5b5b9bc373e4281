"""Anchors: the reference boxes that a dense detection head predicts offsets from. Host code."""

from collections.abc import Sequence

import numpy as np


def generate_anchors(
    image_size: tuple[int, int],
    strides: Sequence[int],
    sizes: Sequence[Sequence[float]],
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
) -> np.ndarray:
    """Generates the anchors of all levels of a feature pyramid (Lin et al. 2017, arXiv:1612.03144).

    Runs on the host.

    Args:
      image_size: Image height and width in pixels.
      strides: Stride of each level in pixels. A level has ceil(height / stride) rows and
        ceil(width / stride) columns.
      sizes: Anchor sizes of each level, as square roots of areas, in pixels.
      aspect_ratios: Height / width of the anchors at each position.

    Returns:
      Anchors, float32 [A, 4], ordered by level, row, column, size and aspect ratio. This is the
      order of a convolution's output [n, rows, columns, sizes * ratios] after a reshape.

    Raises:
      ValueError: The number of size lists differs from the number of strides, or the levels have
        different numbers of sizes.
    """
    if len(sizes) != len(strides):
        raise ValueError(
            f"sizes needs one list for each of the {len(strides)} strides, got {len(sizes)} lists."
        )
    if len({len(level_sizes) for level_sizes in sizes}) > 1:
        raise ValueError(
            "All levels share one head, so each needs the same number of sizes. "
            f"Received: sizes={sizes}"
        )
    levels: list[np.ndarray] = []
    for stride, level_sizes in zip(strides, sizes, strict=True):
        height = np.outer(level_sizes, np.sqrt(aspect_ratios)).ravel()
        width = np.outer(level_sizes, 1 / np.sqrt(aspect_ratios)).ravel()
        corners = np.stack([-height, -width, height, width], -1) / 2
        rows, columns = (-(-size // stride) for size in image_size)
        y, x = np.meshgrid(np.arange(rows) + 0.5, np.arange(columns) + 0.5, indexing="ij")
        centres = np.stack([y, x, y, x], -1)[:, :, np.newaxis] * stride
        levels.append((centres + corners).reshape(-1, 4))
    return np.concatenate(levels).astype(np.float32)
