"""Examples by index, from which a `Source` takes its batches: arrays, or any Python sequence."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from tfloss.data import batches
from tfloss.data.item_structure import SHAPES_CURE, ItemStructure, map_leaves, named_arrays
from tfloss.data.table_columns import column_array, is_column, is_table, matrix, not_collected
from tfloss.data.unusable_data import unusable_array, unusable_data
from tfloss.errors import DataError
from tfloss.inspect.python_randomness import RandomStates

# A slice of one example is not copied, which pays for its ops from this size on.
MIN_SLICE_BYTES = 16_384

READ_ITEMS = "tfloss_read_items"  # name of the op that reads a sequence

_plain = tf.autograph.experimental.do_not_convert


class Examples(Protocol):
    """What a `Source` takes its batches from.

    Attributes:
      reads_single: Whether reading examples one by one costs no more than reading them as a batch.
      decode: Makes an example of what `take` returns; None if nothing is to be done. Traced.
    """

    reads_single: bool
    decode: Callable[[Any], Any] | None

    def __len__(self) -> int:
        """Returns the number of examples."""
        ...

    def take(self, indices: tf.Tensor) -> Any:
        """Returns the batch of these examples, or one example for a scalar. Traced."""
        ...

    def identity(self) -> dict[str, Any]:
        """Returns what the examples depend on, beside their number, as JSON values."""
        ...


class ArrayExamples:
    """Examples along the first dimension of every array in a nest, kept once in host memory.

    Args:
      nest: Arrays or tensors in any nest of dicts and tuples. A list is an array.

    Attributes:
      reads_single: See `Examples`.
      decode: See `Examples`.

    Raises:
      DataError: First dimensions differ or are missing. The message names the arrays.
    """

    def __init__(self, nest: Any):
        """Converts the arrays to tensors. Host code."""
        self.reads_single = True
        self.decode: Callable[[Any], Any] | None = None
        with tf.device("CPU:0"):
            tensors = iter([_tensor(path, one) for path, one in named_arrays(nest)])
            self._nest = map_leaves(nest, lambda _: next(tensors))
        leaves = batches.named_leaves(self._nest)
        sizes = {path or "the array": tuple(x.shape[:1]) for path, x in leaves}
        if not sizes:
            raise DataError("There are no examples: the nest holds no array. Give it at least one.")
        if len(set(sizes.values())) > 1 or not all(sizes.values()):
            found = ", ".join(f"{path} {s[0] if s else 'none'}" for path, s in sizes.items())
            raise DataError(
                f"The arrays have different first dimensions: {found}. Every array must hold all "
                "examples along its first dimension."
            )
        self._length = int(next(iter(sizes.values()))[0])

    def __len__(self) -> int:
        """Returns the number of examples."""
        return self._length

    @_plain
    def take(self, indices: tf.Tensor) -> Any:
        """Returns the batch of these examples, or one example for a scalar. Traced.

        Args:
          indices: Indices of examples, int64 [n] or a scalar.
        """

        def from_array(x: tf.Tensor) -> tf.Tensor:
            large = x.dtype.size * math.prod(d or 0 for d in x.shape[1:]) >= MIN_SLICE_BYTES
            return x[indices] if indices.shape.rank == 0 and large else tf.gather(x, indices)

        return tf.nest.map_structure(from_array, self._nest)

    def identity(self) -> dict[str, Any]:
        """Returns nothing: only the number of examples is known."""
        return {}


class SequenceExamples:
    """The items of a Python sequence: nests of numpy values, all of one structure.

    `__getitem__`, or `__getitems__(list of int)` if there is one, is called from TensorFlow's
    threads. If the sequence has an `element_spec` (a nest of `tf.TensorSpec`), the dimensions that
    it leaves open may differ between items. Otherwise the first item decides on structure, dtypes
    and shapes.

    Args:
      sequence: The sequence.
      decode: Makes an example of an item; None if nothing is to be done. Traced.
      name: What messages call the sequence; by default the name of its class.
      cure: What messages advise if shapes differ.

    Attributes:
      reads_single: True if shapes may differ, since such items can't be stacked.
      decode: The argument.

    Raises:
      DataError: The first or the last item has another structure, dtype or shape. Other items are
        checked when they are read; then TensorFlow's error contains the message.
    """

    def __init__(
        self,
        sequence: Any,
        decode: Callable[[Any], Any] | None = None,
        *,
        name: str | None = None,
        cure: str = SHAPES_CURE,
    ):
        """Reads the first and the last item. Host code."""
        self.decode = decode
        self._sequence = sequence
        self._get_many = getattr(sequence, "__getitems__", None)
        self._name = f"{name or type(sequence).__name__}.{self._reader}"
        spec = getattr(sequence, "element_spec", None)
        if spec is not None or not len(self):
            self._structure = ItemStructure(spec or (), cure)
        else:
            self._structure = ItemStructure.of([sequence[0]], cure=cure)
        self.reads_single = not self._structure.is_static
        for index in {0, len(self) - 1} if len(self) else set[int]():
            self._values(index, sequence[index])

    def __len__(self) -> int:
        """Returns the number of items."""
        return len(self._sequence)

    @_plain
    def take(self, indices: tf.Tensor) -> Any:
        """Returns the batch of these items, or one item for a scalar. Traced.

        Args:
          indices: Indices of items, int64 [n] or a scalar.
        """
        specs = self._structure.specs
        # Flattened, because eagerly a single value comes without its list.
        dtypes = [spec.dtype for spec in specs]
        read = tf.numpy_function(self._read, [indices], dtypes, name=READ_ITEMS)
        found = tf.nest.flatten(read)
        for value, spec in zip(found, specs, strict=True):
            value.set_shape(indices.shape.concatenate(spec.shape))
        return self._structure.packed(found)

    def identity(self) -> dict[str, Any]:
        """Returns nothing: only the number of items is known."""
        return {}

    def randomness(self) -> list[str]:
        """Lists what makes an item depend on more than its index. It reads an item twice."""
        states = RandomStates(self._sequence)
        first, second = (self._read(np.array([0])) for _ in range(2))
        moved = states.moved()
        states.restore()
        found = [f"{self._name} draws from {one}" for one in moved]
        same = all(map(batches.equal, first, second))
        return found or ([] if same else [f"{self._name}(0) returns another item each time"])

    @property
    def _reader(self) -> str:
        return "__getitem__" if self._get_many is None else "__getitems__"

    def _read(self, indices: np.ndarray) -> list[np.ndarray]:
        numbers = indices.ravel().tolist()
        if self._get_many is not None:
            items = self._get_many(numbers)
        else:
            items = [self._sequence[i] for i in numbers]
        rows = [self._values(i, item) for i, item in zip(numbers, items, strict=True)]
        return [np.stack(column) for column in zip(*rows, strict=True)] if indices.ndim else rows[0]

    def _values(self, index: int, item: Any) -> list[np.ndarray]:
        return self._structure.arrays(f"Item {index}", item)


def as_examples(examples: Any) -> Examples:
    """Returns examples by index.

    Args:
      examples: Arrays in a dict or tuple, a sequence, or an object that has the methods of
        `Examples` already.

    Raises:
      DataError: `examples` is none of these.
    """
    if hasattr(examples, "take") and hasattr(examples, "identity"):
        return examples
    if isinstance(examples, Mapping | tuple | np.ndarray | tf.Tensor):
        return ArrayExamples(examples)
    if is_table(examples) or not_collected(examples):
        raise unusable_data(examples)
    if hasattr(examples, "__len__") and hasattr(examples, "__getitem__"):
        return SequenceExamples(examples)
    cure = (
        " A tf.data.Dataset has no random access. Pass it to the trainer directly."
        if isinstance(examples, tf.data.Dataset)
        else ""
    )
    raise DataError(
        "The examples must be arrays in a dict or tuple, or a sequence with __len__ and "
        f"__getitem__; got {type(examples).__name__}.{cure}"
    )


def _tensor(path: str, value: Any) -> tf.Tensor:
    if not_collected(value):
        raise unusable_data(value)
    if is_column(value):
        value = column_array(value, path)
    elif is_table(value) and (found := matrix(value)) is not None:
        value = found
    try:
        return tf.convert_to_tensor(value)
    except (TypeError, ValueError) as error:
        raise unusable_array(path, value, error) from None
