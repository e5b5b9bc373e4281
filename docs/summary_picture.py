"""Takes a picture that a run wrote for TensorBoard, for the docs.

    python docs/summary_picture.py runs/gan samples docs/examples/gan.png

Needs the `docs` extra. The last step's first picture of that tag; `--step=1000` takes that
step's, `--index=1` its second, and `--zoom=4` draws each pixel as 4x4.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.image
import numpy as np
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def picture(workdir: Path, tag: str, step: int | None = None, index: int = 0) -> np.ndarray:
    """The uint8 pixels [height, width, channels]. Raises KeyError, naming the tags there are."""
    events = EventAccumulator(str(workdir / "train"), size_guidance={"tensors": 0})
    events.Reload()
    written = {e.step: e for e in events.Tensors(tag)}
    protos = written[max(written) if step is None else step].tensor_proto.string_val
    return tf.io.decode_png(protos[2 + index]).numpy()  # width and height come first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=Path)
    parser.add_argument("tag")
    parser.add_argument("to", type=Path)
    parser.add_argument("--step", type=int)
    parser.add_argument("--index", type=int, default=0)
    parser.add_argument("--zoom", type=int, default=1)
    flags = parser.parse_args()
    pixels = picture(flags.workdir, flags.tag, flags.step, flags.index)
    pixels = pixels.repeat(flags.zoom, 0).repeat(flags.zoom, 1)
    pixels = pixels.repeat(3, 2) if pixels.shape[-1] == 1 else pixels
    matplotlib.image.imsave(flags.to, pixels)


if __name__ == "__main__":
    main()
