"""Copies images from the TensorBoard events of a run into a file for the docs.

    python docs/summary_picture.py runs/gan docs/examples/gan.png samples --zoom=2
    python docs/summary_picture.py runs/detector docs/examples/detector.png rpn/sampled val/found \
        --images=4

Each tag becomes a row with its first images of the last step. This needs the `docs` extra.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.image
import numpy as np
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def pictures(workdir: Path, tag: str) -> list[np.ndarray]:
    """Reads the images that a run logged last under a tag.

    Args:
      workdir: The directory of the run.
      tag: The tag of the summary.

    Returns:
      The images, each uint8 [height, width, channels].

    Raises:
      KeyError: There is no such tag; the message lists the existing ones.
    """
    run, _, rest = tag.partition("/")  # `val/found` is `found` in the run `val`
    if rest and run != "checkpoints" and (workdir / run).is_dir():
        tag = rest
    else:
        run = "train"
    events = EventAccumulator(str(workdir / run), size_guidance={"tensors": 0})
    events.Reload()
    last = max(events.Tensors(tag), key=lambda event: event.step)
    encoded = last.tensor_proto.string_val[2:]  # after width and height
    return [tf.io.decode_png(one).numpy() for one in encoded]


def row(images: list[np.ndarray], gap: int) -> np.ndarray:
    """Places images side by side, in colour, with a white gap between them.

    Args:
      images: Images of equal height, each uint8 [height, width, 1 or 3].
      gap: The width of the gap, in pixels.

    Returns:
      The row, uint8 [height, width, 3].
    """
    coloured = [np.repeat(one, 3, 2) if one.shape[-1] == 1 else one for one in images]
    padded = [np.pad(one, [(0, gap), (0, gap), (0, 0)], constant_values=255) for one in coloured]
    return np.concatenate(padded, 1)


def main() -> None:
    """Reads the command line, and writes the image file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=Path)
    parser.add_argument("to", type=Path)
    parser.add_argument("tags", nargs="+")
    parser.add_argument("--images", type=int, default=1, help="number of images per tag")
    parser.add_argument("--zoom", type=int, default=1, help="factor by which images are enlarged")
    flags = parser.parse_args()
    rows = []
    for tag in flags.tags:
        images = pictures(flags.workdir, tag)[: flags.images]
        rows.append(row([one.repeat(flags.zoom, 0).repeat(flags.zoom, 1) for one in images], 4))
    matplotlib.image.imsave(flags.to, np.concatenate(rows))


if __name__ == "__main__":
    main()
