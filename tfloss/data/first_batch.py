"""Whether all workers read the same data: each takes its own part of what should be one batch.

Where the order differs (files listed in another order, a shuffle with a seed of its own) some
examples would be trained on twice and others never, without a word. Host code.
"""

import warnings
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfloss.distribute.agreement import Agreement


class FirstBatch:
    """A checksum of the first batch that a data set yields, for workers and later runs to compare.

    Attributes:
      checksum: None before there was a batch.
    """

    def __init__(self):
        self.checksum: int | None = None
        self._compared = False

    def watch(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """The same data set, deterministic; its first batch is looked at as it goes by."""

        def look(index: tf.Tensor, batch: Any) -> Any:
            flat = tf.nest.flatten(batch, expand_composites=True)
            exact = [one for one in flat if not one.dtype.is_floating] or flat
            first = tf.cond(
                index == 0,
                lambda: tf.numpy_function(self._keep, exact, tf.bool),
                lambda: tf.constant(False),
            )
            with tf.control_dependencies([first]):
                same = [tf.identity(one) for one in flat]
            return tf.nest.pack_sequence_as(batch, same, expand_composites=True)

        options = tf.data.Options()
        options.deterministic = True
        return (
            dataset.with_options(options)
            .enumerate()
            .map(tf.autograph.experimental.do_not_convert(look))
        )

    def compare(self, agreement: Agreement) -> None:
        """Warns once, on all workers, if they have seen different ones.

        Random augmentation may differ; so of a batch with integers or strings in it (labels,
        names) only these are compared.
        """
        if self._compared or self.checksum is None:
            return
        self._compared = True
        theirs = agreement.agree([], [self.checksum])[1][0]
        if agreement.agree([theirs != self.checksum])[0][0]:
            warnings.warn(
                "The workers read different first batches. Each trains on its own part of every "
                "batch, so unless only random augmentation differs, some examples are used "
                "twice and others never. Seed every shuffle, sort lists of files, leave out "
                "deterministic=False; or pass input_fn(context), by which each worker reads a "
                "share of its own.",
                stacklevel=2,
            )

    def _keep(self, *leaves: Sequence[Any]) -> np.bool_:
        if self.checksum is None:
            texts = [
                repr(x.tolist()).encode() if x.dtype == object else x.tobytes()
                for x in map(np.asarray, leaves)
            ]
            self.checksum = zlib.crc32(b"".join(texts))
        return np.bool_(True)
