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
        self._sizes: list[int] = []
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
            # Other dimensions may be random, as those of a crop.
            dense = [one for one in tf.nest.flatten(batch) if isinstance(one, tf.Tensor)]
            sizes = [tf.shape(one)[0] for one in dense if one.shape.rank]
            noted = tf.cond(
                index == 0,
                lambda: tf.numpy_function(self._note, [tf.stack([0, *sizes]), *exact], tf.bool),
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
        agreement.require_equal(
            {"the sizes of the first batch": self._sizes},
            "Each worker trains on its own part of each batch, so all of them must read the same "
            "batches. Use the same batch size and the same data on all workers.",
            "the comparison of the first batches",
        )
        if len(set(agreement.gather("the first batches", self.checksum))) > 1:
            warnings.warn(
                "The workers read different first batches. Each worker trains on its own part of "
                "every batch, so some examples are used twice and others never, unless only random "
                "augmentation differs. Set a seed on every shuffle, sort lists of files, and "
                "remove deterministic=False. Or pass input_fn(context), with which each worker "
                "reads its own batches.",
                stacklevel=2,
            )

    def _note(self, sizes: np.ndarray, *leaves: np.ndarray) -> np.bool_:
        if self.checksum is None:
            self._sizes = sizes[1:].tolist()
            texts = [
                repr(x.tolist()).encode() if x.dtype == object else x.tobytes()
                for x in map(np.asarray, leaves)
            ]
            self.checksum = zlib.crc32(b"".join(texts))
        return np.bool_(True)
