"""Checks that all workers read the same data, by a checksum of the first batch. Host code.

Each worker trains on its own part of each global batch. If the order of the data differs between
workers (files listed in another order, a shuffle with another seed), some examples are trained on
twice and others never, and nothing else would show it.
"""

import warnings
import zlib
from typing import Any

import numpy as np
import tensorflow as tf

from tfloss.distribute.agreement import Agreement


class FirstBatch:
    """A checksum of the first batch of a data set, to compare between workers and later runs.

    Attributes:
      checksum: CRC-32 of the batch; None before it was read.
    """

    def __init__(self):
        """Waits for the first batch of the data set that `watch` returns."""
        self.checksum: int | None = None
        self._compared = False

    def watch(self, dataset: "tf.data.Dataset[Any]") -> "tf.data.Dataset[Any]":
        """Returns the same data set, in deterministic order, whose first batch is noted.

        Random augmentation may differ between workers. So only the integers and strings of a batch
        (labels, names) count, if it has any.

        Args:
          dataset: Data set of batches.
        """

        def note_first(index: tf.Tensor, batch: Any) -> Any:
            flat = tf.nest.flatten(batch, expand_composites=True)
            there = [one for one in flat if one is not None]
            exact = [one for one in there if not one.dtype.is_floating] or there
            noted = tf.cond(
                index == 0,
                lambda: tf.numpy_function(self._note, exact, tf.bool),
                lambda: tf.constant(False),
            )
            with tf.control_dependencies([noted]):
                same = [None if one is None else tf.identity(one) for one in flat]
            return tf.nest.pack_sequence_as(batch, same, expand_composites=True)

        options = tf.data.Options()
        options.deterministic = True
        return (
            dataset.with_options(options)
            .enumerate()
            .map(tf.autograph.experimental.do_not_convert(note_first))
        )

    def compare(self, agreement: Agreement) -> None:
        """Warns once, on all workers, if their first batches differ.

        Args:
          agreement: Communication between the workers.
        """
        if self._compared or self.checksum is None:
            return
        self._compared = True
        chief = agreement.agree([], [self.checksum])[1][0]
        if agreement.agree([chief != self.checksum])[0][0]:
            warnings.warn(
                "The workers read different first batches. Each worker trains on its own part of "
                "every batch, so some examples are used twice and others never, unless only random "
                "augmentation differs. Set a seed on every shuffle, sort lists of files, and "
                "remove deterministic=False. Or pass input_fn(context), with which each worker "
                "reads its own batches.",
                stacklevel=2,
            )

    def _note(self, *leaves: np.ndarray) -> np.bool_:
        if self.checksum is None:
            texts = [
                repr(x.tolist()).encode() if x.dtype == object else x.tobytes()
                for x in map(np.asarray, leaves)
            ]
            self.checksum = zlib.crc32(b"".join(texts))
        return np.bool_(True)
