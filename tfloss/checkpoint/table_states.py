"""The content of a layer's tables, as a checkpoint holds it. Host code.

A mutable table is saved and restored. A static one is made by the script, so a checkpoint holds
only a digest of it: a script that makes another one is refused.
"""

import hashlib
import weakref
from typing import Any

import numpy as np
import tensorflow as tf

from tfloss import _upstream


class StringState:
    """A state whose value is a string tensor."""

    shape = tf.TensorShape([None])
    dtype = tf.string


class TableState(StringState):
    """The keys and values of a mutable table."""

    def __init__(self, table: Any):
        self.table, self.handle = table, table.resource_handle

    def read_value(self) -> tf.Tensor:
        """Returns keys and values, serialised. Those of a MutableHashTable are sorted by key."""
        keys, values = self.table.export()
        if isinstance(self.table, tf.lookup.experimental.MutableHashTable):
            order = np.argsort(keys.numpy(), kind="stable")  # TensorFlow's order is that of hashes
            keys, values = tf.gather(keys, order), tf.gather(values, order)
        return tf.stack([tf.io.serialize_tensor(keys), tf.io.serialize_tensor(values)])

    def problem(self, value: np.ndarray) -> str | None:
        """Compares the dtypes and the shape of a value."""
        try:
            saved = self._parsed(value)
        except tf.errors.InvalidArgumentError as error:
            return f"a table of other dtypes was saved: {error.message}"
        for what, then, now in zip(("key", "value"), saved, self.table.export(), strict=True):
            if then.shape[1:] != now.shape[1:]:
                return f"saved with {what}s of shape {then.shape[1:]}, here {now.shape[1:]}"
        return None

    def assign(self, value: np.ndarray) -> None:
        """Replaces the content of the table."""
        keys, values = self._parsed(value)
        tf.raw_ops.LookupTableImportV2(table_handle=self.handle, keys=keys, values=values)

    def _parsed(self, value: np.ndarray) -> tuple[tf.Tensor, tf.Tensor]:
        keys, values = value
        table = self.table
        return tf.io.parse_tensor(keys, table.key_dtype), tf.io.parse_tensor(
            values, table.value_dtype
        )


class StaticTableState(StringState):
    """The content of a table that can't change, as a digest."""

    def __init__(self, table: Any):
        self._table = table

    def read_value(self) -> tf.Tensor:
        """Returns the number of entries, and a digest of keys and values in any order."""
        table = self._table
        if table not in _digests:  # a large one takes seconds to read
            _digests[table] = _digest(table)
        return tf.constant(_digests[table])

    def problem(self, value: np.ndarray) -> str | None:
        """Compares the content."""
        saved, here = (one.astype(str).tolist() for one in (value, self.read_value().numpy()))
        if saved[0] != here[0]:
            return f"the static table had {saved[0]} entries, here {here[0]}"
        return None if saved == here else "the static table had other keys or values"

    def assign(self, value: np.ndarray) -> None:
        """Does nothing: the content is equal."""


_digests: weakref.WeakKeyDictionary[Any, list[str]] = weakref.WeakKeyDictionary()


def _digest(table: Any) -> list[str]:
    parts = [table.key_dtype.name, table.value_dtype.name, str(int(table.size()))]
    inner = _upstream.static_table_in(table)  # None: all keys are out of the vocabulary
    if inner is not None:
        keys, values = inner.export()
        order = np.argsort(keys.numpy(), kind="stable")  # TensorFlow's order is that of hashes
        sorted_ = (tf.io.serialize_tensor(tf.gather(one, order)) for one in (keys, values))
        parts += [hashlib.sha256(one.numpy()).hexdigest() for one in sorted_]
    return [parts[2], " ".join(parts)]
