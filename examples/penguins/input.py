"""The penguins in batches. Missing values stay missing."""

import numpy as np
import tensorflow as tf

from tfloss.data.tfds_prepare import prepared
from tfloss.datasets.penguins import PenguinsPalmer


def batches(
    data_dir: str, batch_size: int, seed: int
) -> tuple[
    tf.data.Dataset,
    tf.data.Dataset,
    tf.data.Dataset,
    dict[str, tuple[list[float], list[float]]],
]:
    """Makes the data sets. The builder prepares them on first use.

    Args:
      data_dir: The directory of TFDS.
      batch_size: The number of examples in a batch.
      seed: The seed of the training order.

    Returns:
      Endless training batches of 220 penguins; the 55 validation penguins once; the 69 test
      penguins once; and the means and standard deviations of the training penguins,
      `{"mass": ([4200.0], [800.0]), ...}`.
    """
    builder = prepared(lambda: PenguinsPalmer(data_dir=data_dir))
    train, val, test = builder.as_dataset(split=["train[:80%]", "train[80%:]", "test"])
    penguins = list(train.as_numpy_iterator())
    statistics: dict[str, tuple[list[float], list[float]]] = {}
    for name in ("measurements", "mass", "isotopes"):
        values = np.stack([one[name] for one in penguins]).reshape(len(penguins), -1)
        statistics[name] = (np.nanmean(values, 0).tolist(), np.nanstd(values, 0).tolist())
    train = train.cache().shuffle(len(penguins), seed=seed).repeat()
    train = train.batch(batch_size).prefetch(2)
    return train, val.batch(batch_size).cache(), test.batch(batch_size).cache(), statistics
