"""Input with random access: the order of batches is a function of (seed, position).

A data set that shuffles through a buffer can't start in the middle; a computed order can. So a
resumed run continues exactly where the last one stopped, with the same shuffle and the same
augmentation, and a checkpoint stores only a number.
"""

import inspect
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfloss.data import batches, permutation
from tfloss.data.batch_division import part_of
from tfloss.data.batch_layout import ROWS_ARE_EXAMPLES, BatchLayout
from tfloss.data.examples import as_examples
from tfloss.data.seekable import Dataset, Seekable, check_shard, checked_integer
from tfloss.data.source_randomness import source_randomness
from tfloss.errors import DataError
from tfloss.inspect.traceback_filtering import filtered_tracebacks

_plain = tf.autograph.experimental.do_not_convert

# Number of positions whose order is computed at once: enough to make the overhead of the ops small,
# and few enough that the first batch takes only milliseconds.
CHUNK = 4096
_ENDLESS = 2**62  # batches


class Source(Seekable):
    """Batches of shuffled examples as a `tf.data.Dataset` that can start at any batch. Host code.

        source = tfloss.data.Source({"image": images, "label": labels}, batch_size=32, map=augment)
        source.dataset(start=1_000)  # from batch 1,000 on

    Each epoch has its own order and contains each example once.

    Args:
      examples: Arrays with the same first dimension, in any nest of dicts and tuples; or any
        sequence (`__len__`, `__getitem__`, and optionally `__getitems__`) whose items are nests of
        numpy values, see `tfloss.data.examples.SequenceExamples`; or
        `tfloss.data.tfds_records.Records`.
      batch_size: Number of examples in a global batch.
      seed: Integer seed of the order, and of the seeds for `map` and `batch_map`.
      shuffle: Whether to shuffle. False keeps the order of the examples.
      epochs: Number of epochs; None repeats without end. Batches cross the ends of epochs, so
        all have the same size. Only the last one may be smaller.
      drop_remainder: Whether to drop the last batch if it is smaller.
      map: Function `map(example)` or `map(example, seed)` that transforms one example. Traced.
      batch_map: Function `batch_map(batch)` or `batch_map(batch, seed)` that transforms a batch,
        after `map`. Traced. Each `seed`, int32 [2], is meant for `tf.random.stateless_*`. It
        depends on the position of the example or batch over all epochs, so it differs between
        epochs.
      num_parallel_calls: Number of parallel calls for reading and mapping. It doesn't change the
        order.

    Attributes:
      batch_size: The argument.
      element_spec: Nest of `tf.TypeSpec`s of a batch, with a static batch size if all batches have
        the same size.
      steps_per_epoch: Number of examples divided by the batch size, a float.
      cardinality: Number of batches, or `tf.data.INFINITE_CARDINALITY`.

    Raises:
      DataError: Arrays have different lengths, items have different structures, there are no
        examples, an argument is out of range, or a function takes other arguments.
    """

    @filtered_tracebacks
    def __init__(
        self,
        examples: Any,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        epochs: int | None = None,
        drop_remainder: bool = False,
        map: Callable[..., Any] | None = None,
        batch_map: Callable[..., Any] | None = None,
        num_parallel_calls: int | None = tf.data.AUTOTUNE,
    ):
        """Checks the arguments, and reads the first example."""
        self._size = checked_integer("batch_size", batch_size, minimum=1)
        self.batch_size = self._size
        self._seed = checked_integer("seed", seed)
        self._epochs = None if epochs is None else checked_integer("epochs", epochs, minimum=1)
        self._shuffle = bool(shuffle)
        self._drop_remainder = bool(drop_remainder)
        self._map, self._batch_map = map, batch_map
        self._map_seeded = _takes_seed("map", "example", map)
        self._batch_map_seeded = _takes_seed("batch_map", "batch", batch_map)
        self._calls = num_parallel_calls
        self._examples = as_examples(examples)
        if not len(self):
            raise DataError("The source is empty: it has no examples. Give it at least one.")
        self.steps_per_epoch = len(self) / self._size
        self.cardinality: int = int(tf.data.INFINITE_CARDINALITY)
        # Number of full batches, and of examples in a smaller batch after them.
        self._full, self._short = _ENDLESS, 0
        if self._epochs is not None:
            self._full, rest = divmod(self._epochs * len(self), self._size)
            self._short = 0 if self._drop_remainder else rest
            self.cardinality = self._full + bool(self._short)
            if not self.cardinality:
                raise DataError(
                    f"No batch is left of {len(self)} examples with batch_size={self._size} "
                    "and drop_remainder=True. Choose a smaller batch size, or keep the remainder."
                )
        # Traced once, not for each data set.
        self._order = tf.function(
            self._ordered, input_signature=[tf.TensorSpec([None], tf.int64)], autograph=False
        )
        self.element_spec: Any = self.dataset().element_spec

    @classmethod
    @filtered_tracebacks
    def from_tfds(
        cls,
        name_or_builder: Any,
        split: Any,
        *,
        data_dir: Any = None,
        download: bool = False,
        decoders: Any = None,
        **options: Any,
    ) -> "Source":
        """Returns a source of a TFDS data set, which is read by index from its files. Host code.

        Args:
          name_or_builder: Name as for `tfds.load`, such as "mnist" or "coco/2017"; or a builder.
          split: Split as TFDS understands it, such as "train[:80%]".
          data_dir: Directory of the prepared data set; None is TFDS's default.
          download: Whether to download and prepare the data set if needed.
          decoders: Decoders as for `tfds.load`.
          **options: Other arguments of `Source`.

        Raises:
          DataError: The data set isn't prepared, or can't be read by index.
        """
        from tfloss.data.tfds_records import open_tfds

        where = {"data_dir": data_dir, "download": download, "decoders": decoders}
        return cls(open_tfds(name_or_builder, split, **where), **options)

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self._examples)

    def identity(self) -> dict[str, Any]:
        """Returns what the order depends on, as JSON values. It is equal for equal orders."""
        return {
            "examples": len(self),
            "batch_size": self._size,
            "seed": self._seed,
            "shuffle": self._shuffle,
            "epochs": self._epochs,
            "drop_remainder": self._drop_remainder,
            **self._examples.identity(),
        }

    def randomness(self) -> list[str]:
        """Lists what makes a batch depend on more than the seed and its position. Host code.

        A run that resumes in the middle would see other batches. See `source_randomness`.
        """
        return source_randomness(self.dataset, (self._map, self._batch_map), self._examples)

    def dataset(
        self,
        start: int = 0,
        *,
        shard: int = 0,
        shards: int = 1,
        layout: BatchLayout = ROWS_ARE_EXAMPLES,
    ) -> Dataset:
        """Returns the batches from `start` on, see `Seekable.dataset`.

        A `batch_map` makes a batch as a whole.
        """
        start = checked_integer("start", start, minimum=0)
        check_shard(shard, shards)
        if self._batch_map is None:
            found = self._parts(start, shard, shards)
        else:
            found = self._parts(start, 0, 1).enumerate(start)
            found = self._mapped(found, self._map_batch)
            spec = found.element_spec
            if shards > 1:
                found = found.map(_plain(lambda *batch: _part(spec, batch, shard, shards, layout)))
        rest = self.cardinality if self._epochs is None else max(0, self.cardinality - start)
        return found.apply(tf.data.experimental.assert_cardinality(rest))

    def _parts(self, start: int, shard: int, shards: int) -> Dataset:
        """Returns this shard's part of each batch, before `batch_map`."""
        low, high = batches.split_bounds(self._size, shards, shard)
        short_low, short_high = batches.split_bounds(self._short, shards, shard)
        chunk = max(1, CHUNK // self._size)

        @_plain
        def positions(first: tf.Tensor) -> tf.Tensor:
            last = tf.minimum(first + chunk, self._full)
            parts = tf.range(first, last)[:, tf.newaxis] * self._size
            return tf.reshape(parts + tf.range(low, high, dtype=tf.int64), [-1])

        def empty(times: int) -> Dataset:
            one = self._batches(tf.data.Dataset.from_tensors(tf.zeros([1], tf.int64)), 1)
            return one.map(lambda *batch: _part(one.element_spec, batch, 1, 2)).repeat(times)

        if low == high:
            return empty(-1 if self._epochs is None else max(0, self.cardinality - start))
        pieces = tf.data.Dataset.range(start, self._full, chunk).map(positions)
        short = self._short > 0 and start <= self._full
        if short and short_low < short_high:
            end = self._full * self._size
            last = tf.range(end + short_low, end + short_high, dtype=tf.int64)
            pieces = pieces.concatenate(tf.data.Dataset.from_tensors(last))
        found = self._batches(pieces, high - low, static=not self._short)
        return found.concatenate(empty(1)) if short and short_low == short_high else found

    def _batches(self, pieces: Dataset, size: int, *, static: bool = False) -> Dataset:
        """Returns batches of the examples at given positions.

        Args:
          pieces: Data set of positions, int64 [m]. m is a multiple of `size`; without `static` it
            may be anything in the last piece.
          size: Number of examples in a batch.
          static: Whether all batches have that size.
        """
        examples = self._examples
        # The order of the next piece is computed while this one is used.
        pieces = pieces.map(self._order).prefetch(1)
        slices = tf.data.Dataset.from_tensor_slices
        if examples.reads_single and self._map is not None:

            def from_index(index: tf.Tensor, *seed: tf.Tensor) -> Any:
                return self._made(examples.take(index), *seed)

            singles = pieces.flat_map(lambda *order: slices(order))
            return self._mapped(singles, from_index).batch(size, drop_remainder=static)

        @_plain
        def rows(*order: tf.Tensor) -> Dataset:
            each = tf.minimum(tf.size(order[0]), size)
            return slices(tuple(tf.reshape(x, [-1, each, *x.shape[1:]]) for x in order))

        @_plain
        def take(indices: tf.Tensor, *seeds: tf.Tensor) -> Any:
            found = examples.take(tf.ensure_shape(indices, [size if static else None]))
            return {"example": found, "seed": seeds} if per_example else found

        per_example = examples.decode is not None or self._map is not None
        found = self._mapped(pieces.flat_map(rows), take)
        if not per_example:
            return found
        found = found.unbatch()
        found = self._mapped(found, lambda both: self._made(both["example"], *both["seed"]))
        return found.batch(size, drop_remainder=static)

    def _mapped(self, dataset: Dataset, function: Callable[..., Any]) -> Dataset:
        ordered = None if self._calls is None else True  # TensorFlow warns if it has no effect
        return dataset.map(function, self._calls, deterministic=ordered)

    def _ordered(self, positions: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Returns the indices of the examples at these positions, and the seeds for `map`."""
        if self._shuffle:
            indices = permutation.shuffled(positions, len(self), self._seed)
        else:
            indices = tf.math.floormod(positions, len(self))
        seeds = (permutation.seeds(positions, self._seed),) if self._map_seeded else ()
        return (indices, *seeds)

    # Autograph converts the next two methods, so that it reaches the user's functions.

    def _made(self, example: Any, *seed: tf.Tensor) -> Any:
        if self._examples.decode is not None:
            example = self._examples.decode(example)
        return example if self._map is None else self._map(example, *seed)

    def _map_batch(self, number: tf.Tensor, batch: Any) -> Any:
        assert self._batch_map is not None
        # Batches use negative positions, so that none has the seed of an example.
        seed = (permutation.seeds(-1 - number, self._seed),) if self._batch_map_seeded else ()
        return self._batch_map(batch, *seed)


@_plain
def _part(
    spec: Any,
    elements: tuple[Any, ...],
    shard: int,
    shards: int,
    layout: BatchLayout = ROWS_ARE_EXAMPLES,
) -> Any:
    # tf.data passes the items of a tuple as separate arguments.
    batch = tf.nest.pack_sequence_as(spec, tf.nest.flatten(elements))
    return part_of(layout, batch, shards, shard)


def _takes_seed(name: str, what: str, function: Callable[..., Any] | None) -> bool:
    """Returns whether a function takes a seed beside its example.

    Raises:
      DataError: It takes other arguments.
    """
    if function is None:
        return False
    try:
        signature = inspect.signature(function)
        needed = [
            one
            for one in signature.parameters.values()
            if one.default is one.empty
            and one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
        ]
        seeded = len(needed) == 2
        signature.bind(*(None for _ in range(1 + seeded)))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{name} must be a function of ({what}) or of ({what}, seed), where seed is int32 [2] "
            f"for tf.random.stateless_*; got {function!r}: {error}."
        ) from None
    return seeded
