"""Batches by index, as a `keras.utils.PyDataset` has them: a data set that can start anywhere."""

from typing import Any

import tensorflow as tf

from tfloss.data import permutation
from tfloss.data.batch_division import part_of
from tfloss.data.batch_layout import ROWS_ARE_EXAMPLES, BatchLayout
from tfloss.data.examples import SequenceExamples
from tfloss.data.fit_arrays import fit_arrays
from tfloss.data.item_structure import ItemStructure
from tfloss.data.seekable import Dataset, Seekable, check_shard, checked_integer
from tfloss.data.unusable_data import epoch_hooks
from tfloss.errors import DataError
from tfloss.inspect.traceback_filtering import filtered_tracebacks

_plain = tf.autograph.experimental.do_not_convert

_CHUNK = 256  # positions whose order is computed at once
_ENDLESS = 2**62  # batches
_CURE = (
    "Give it an attribute element_spec, a nest of tf.TensorSpec for a batch, that leaves those "
    "dimensions open (None)."
)


class BatchSource(Seekable):
    """The batches of a `keras.utils.PyDataset` as a data set that can start at any batch.

        source = tfloss.data.BatchSource(MyPyDataset(...), seed=1)
        source.dataset(start=1_000)  # from batch 1,000 on

    Each epoch contains each batch once, in an order of its own. As in `fit`, a list of arrays
    becomes a tuple, and floats get Keras's `floatx`. `workers` threads read the batches; no
    processes are started. Host code.

    Args:
      data: A `PyDataset`; or any object with `__len__` and `__getitem__` that returns one batch, a
        nest of numpy values. The batch must depend on the index alone. If the object has an
        `element_spec` (a nest of `tf.TensorSpec`), it describes a batch. Otherwise the first two
        batches and the last one decide, and the number of examples is left open.
      shuffle: Whether to shuffle the order of the batches. False keeps it.
      seed: Integer seed of the order.
      epochs: Number of epochs; None repeats without end.

    Attributes:
      batch_size: Number of examples in the first batch, or None if its tensors don't tell.
      element_spec: Nest of `tf.TypeSpec`s of a batch.
      steps_per_epoch: Number of batches, a float.
      cardinality: Number of batches in all epochs, or `tf.data.INFINITE_CARDINALITY`.

    Raises:
      DataError: There is no batch, their number is unknown, they have different structures, an
        argument is out of range, or there is a second epoch and the data change between epochs.
    """

    @filtered_tracebacks
    def __init__(
        self, data: Any, *, shuffle: bool = True, seed: int = 0, epochs: int | None = None
    ):
        """Checks the arguments, and reads the first two batches and the last one."""
        self._seed = checked_integer("seed", seed)
        self._shuffle = bool(shuffle)
        self._epochs = None if epochs is None else checked_integer("epochs", epochs, minimum=1)
        if epochs != 1 and (hooks := epoch_hooks(data)):
            raise hooks
        self._length = _length(data)
        self._workers = max(1, int(getattr(data, "workers", 1)))
        first, last = fit_arrays(data[0]), len(self) - 1
        spec = getattr(data, "element_spec", None)
        if spec is None:
            others = [fit_arrays(data[index]) for index in sorted({1, last} - {0}) if index <= last]
            spec = ItemStructure.of([first, *others], open_rows=True).spec
        self._items = SequenceExamples(
            _Batches(data, len(self), spec), name=type(data).__name__, cure=_CURE
        )
        self.batch_size = ROWS_ARE_EXAMPLES.static_count(ItemStructure.of([first]).spec)
        self.steps_per_epoch = float(len(self))
        self.cardinality = int(tf.data.INFINITE_CARDINALITY)
        if self._epochs is not None:
            self.cardinality = self._epochs * len(self)
        self._order = tf.function(
            self._ordered, input_signature=[tf.TensorSpec([None], tf.int64)], autograph=False
        )
        self.element_spec: Any = self.dataset().element_spec

    def __len__(self) -> int:
        """Returns the number of batches in an epoch."""
        return self._length

    def identity(self) -> dict[str, Any]:
        """Returns what the order depends on, as JSON values. It is equal for equal orders."""
        return {
            "batches": len(self),
            "seed": self._seed,
            "shuffle": self._shuffle,
            "epochs": self._epochs,
        }

    def randomness(self) -> list[str]:
        """Lists what makes a batch depend on more than its index. It reads a batch twice."""
        return [
            f"{one}: make a batch depend on its index alone" for one in self._items.randomness()
        ]

    def dataset(
        self,
        start: int = 0,
        *,
        shard: int = 0,
        shards: int = 1,
        layout: BatchLayout = ROWS_ARE_EXAMPLES,
    ) -> Dataset:
        """Returns the batches from `start` on, see `Seekable.dataset`. Each is made as a whole."""
        start = checked_integer("start", start, minimum=0)
        check_shard(shard, shards)
        end = _ENDLESS if self._epochs is None else self.cardinality

        @_plain
        def read(position: tf.Tensor) -> Any:
            batch = self._items.take(position)
            return batch if shards == 1 else part_of(layout, batch, shards, shard)

        @_plain
        def positions(first: tf.Tensor) -> tf.Tensor:
            return self._order(tf.range(first, tf.minimum(first + _CHUNK, end)))

        order = tf.data.Dataset.range(start, max(start, end), _CHUNK).map(positions).prefetch(1)
        found = order.flat_map(_plain(tf.data.Dataset.from_tensor_slices))
        found = found.map(read, self._workers, deterministic=True)
        rest = self.cardinality if self._epochs is None else max(0, end - start)
        return found.apply(tf.data.experimental.assert_cardinality(rest))

    def _ordered(self, positions: tf.Tensor) -> tf.Tensor:
        """Returns the indices of the batches at these positions."""
        if self._shuffle:
            return permutation.shuffled(positions, len(self), self._seed)
        return tf.math.floormod(positions, len(self))


class _Batches:
    """Batches as `fit` takes them, by index."""

    def __init__(self, data: Any, length: int, spec: Any):
        self._data, self._length, self.element_spec = data, length, spec

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        return fit_arrays(self._data[index])


def _length(data: Any) -> int:
    name = type(data).__name__
    try:
        found = data.num_batches if hasattr(data, "on_epoch_end") else len(data)
    except (TypeError, NotImplementedError):
        found = None
    if found is None:
        raise DataError(
            f"{name} doesn't know its number of batches, so there is no random access to an epoch. "
            "Give it a __len__. Or pass a generator function that yields its batches."
        )
    if found < 1:
        raise DataError(f"{name} is empty: it has no batch at all. Its __len__ returned {found}.")
    return int(found)
