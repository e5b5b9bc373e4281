"""Input that knows where it is: an order of batches that is a function of (seed, position).

A data set that shuffles through a buffer can't be started in its middle; an order that is computed
can. So a run that is stopped anywhere reads on exactly where it stopped, with the same shuffle and
the same augmentation, and nothing but a number has to be stored.
"""

import inspect
import operator
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfloss.data import batches, permutation
from tfloss.data.examples import as_examples
from tfloss.errors import DataError

_plain = tf.autograph.experimental.do_not_convert

# Positions whose order is computed in one go: enough to make the ops' own cost small, and few
# enough that the first batch is there after some milliseconds.
CHUNK = 4096
_ENDLESS = 2**62  # batches


class Source:
    """Batches of shuffled examples, from any position on, as an ordinary `tf.data.Dataset`.

        source = tfloss.data.Source({"image": images, "label": labels}, batch_size=32, map=augment)
        source.dataset(start=1_000)  # from batch 1,000 on

    Each epoch has an order of its own, and has each example once.

    Args:
      examples: arrays with the same first dimension, in any nest of dicts and tuples; or any
        sequence (`__len__`, `__getitem__`, and `__getitems__` where there is one) whose items are
        nests of numpy values, see `tfloss.data.examples.Items`; or
        `tfloss.data.tfds_records.Records`.
      batch_size: examples in a (global) batch.
      seed: any integer: of the order and of the seeds that `map` and `batch_map` get.
      shuffle: False keeps the order of the examples.
      epochs: None is without end. Batches run over the ends of epochs, so that all have the same
        size; with a number of epochs only the last is smaller, unless `drop_remainder`.
      drop_remainder: leaves that last batch out.
      map: `map(example)` or `map(example, seed)`: what becomes of one example. Traced.
      batch_map: `batch_map(batch)` or `batch_map(batch, seed)`: of a whole batch, after `map`.
        Traced. Each `seed`, int32 [2], is for `tf.random.stateless_*`: it belongs to the position
        of the example, or to the batch, in the endless order, so it differs between epochs.
      num_parallel_calls: of what is read and mapped; it doesn't change the order.

    Attributes:
      batch_size: as given.
      element_spec: of a batch; with a static batch size where all batches have the same.
      steps_per_epoch: examples / batch_size, a float.
      cardinality: number of batches, or `tf.data.INFINITE_CARDINALITY`.

    Raises:
      DataError: arrays of different lengths, items of different structures, no examples at all,
        a batch size below 1, a seed that is no integer, a function with other arguments.
    """

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
        self.batch_size = _integer("batch_size", batch_size, least=1)
        self._seed = _integer("seed", seed)
        self._epochs = None if epochs is None else _integer("epochs", epochs, least=1)
        self._shuffle = bool(shuffle)
        self._drop_remainder = bool(drop_remainder)
        self._map, self._batch_map = map, batch_map
        self._map_seeded = _takes_seed("map", "example", map)
        self._batch_map_seeded = _takes_seed("batch_map", "batch", batch_map)
        self._calls = num_parallel_calls
        self._examples = as_examples(examples)
        if not len(self):
            raise DataError("The source is empty: it has no example at all.")
        self.steps_per_epoch = len(self) / self.batch_size
        self.cardinality: int = int(tf.data.INFINITE_CARDINALITY)
        self._full, self._short = _ENDLESS, 0  # batches, and examples in one after them
        if self._epochs is not None:
            self._full, rest = divmod(self._epochs * len(self), self.batch_size)
            self._short = 0 if self._drop_remainder else rest
            self.cardinality = self._full + bool(self._short)
            if not self.cardinality:
                raise DataError(
                    f"No batch is left of {len(self)} examples: batches of {self.batch_size} with "
                    "drop_remainder=True. Make batches smaller, or keep the remainder."
                )
        # Traced once, not at every start.
        self._order = tf.function(
            self._ordered, input_signature=[tf.TensorSpec([None], tf.int64)], autograph=False
        )
        self.element_spec: Any = self.dataset().element_spec

    @classmethod
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
        """A source of a TFDS data set, read by number from its files as they are. Host code.

        The arguments before `options`, which are those of `Source`, and what is raised are
        described at `tfloss.data.tfds_records.open_tfds`.
        """
        from tfloss.data.tfds_records import open_tfds

        where = {"data_dir": data_dir, "download": download, "decoders": decoders}
        return cls(open_tfds(name_or_builder, split, **where), **options)

    def __len__(self) -> int:
        """The number of examples."""
        return len(self._examples)

    def identity(self) -> dict[str, Any]:
        """What the order depends on, JSON-able: two sources of which it is equal have the same."""
        return {
            "examples": len(self),
            "batch_size": self.batch_size,
            "seed": self._seed,
            "shuffle": self._shuffle,
            "epochs": self._epochs,
            "drop_remainder": self._drop_remainder,
            **self._examples.identity(),
        }

    def dataset(self, start: int = 0, *, shard: int = 0, shards: int = 1) -> tf.data.Dataset:
        """The batches `start`, `start + 1`, ... Host code; takes the same time for any `start`.

        Args:
          start: number of the first batch. There is none left at `cardinality` or after it.
          shard: which part of each batch.
          shards: into how many parts each batch is cut, in order, of sizes that differ by at most
            one. A part may be empty. With a `batch_map` each makes the whole batch, then cuts it.

        Raises:
          DataError: start is negative, or shard not in 0 to shards - 1.
        """
        start = _integer("start", start, least=0)
        shards = _integer("shards", shards, least=1)
        if not 0 <= _integer("shard", shard) < shards:
            raise DataError(f"shard must be 0 to {shards - 1}, as there are {shards}; got {shard}.")
        if self._batch_map is None:
            found = self._parts(start, shard, shards)
        else:
            found = self._parts(start, 0, 1).enumerate(start)
            found = self._mapped(found, self._map_batch)
            spec = found.element_spec
            if shards > 1:
                found = found.map(lambda *batch: _part(spec, batch, shard, shards))
        rest = self.cardinality if self._epochs is None else max(0, self.cardinality - start)
        return found.apply(tf.data.experimental.assert_cardinality(rest))

    def _parts(self, start: int, shard: int, shards: int) -> tf.data.Dataset:
        """This shard's part of each batch, before `batch_map`."""
        low, high = batches.bounds(self.batch_size, shards, shard)
        short_low, short_high = batches.bounds(self._short, shards, shard)
        chunk = max(1, CHUNK // self.batch_size)

        @_plain
        def positions(first: tf.Tensor) -> tf.Tensor:
            last = tf.minimum(first + chunk, self._full)
            parts = tf.range(first, last)[:, tf.newaxis] * self.batch_size
            return tf.reshape(parts + tf.range(low, high, dtype=tf.int64), [-1])

        def nothing(times: int) -> tf.data.Dataset:
            one = self._batches(tf.data.Dataset.from_tensors(tf.zeros([1], tf.int64)), 1)
            return one.map(lambda *batch: _part(one.element_spec, batch, 1, 2)).repeat(times)

        if low == high:
            return nothing(-1 if self._epochs is None else max(0, self.cardinality - start))
        pieces = tf.data.Dataset.range(start, self._full, chunk).map(positions)
        short = self._short > 0 and start <= self._full
        if short and short_low < short_high:
            end = self._full * self.batch_size
            last = tf.range(end + short_low, end + short_high, dtype=tf.int64)
            pieces = pieces.concatenate(tf.data.Dataset.from_tensors(last))
        found = self._batches(pieces, high - low, static=not self._short)
        return found.concatenate(nothing(1)) if short and short_low == short_high else found

    def _batches(
        self, pieces: tf.data.Dataset, size: int, *, static: bool = False
    ) -> tf.data.Dataset:
        """Batches of the examples at positions that come in pieces, int64 [m].

        m is a multiple of `size`, or smaller in the last piece, unless all are `static`.
        """
        examples = self._examples
        # The next piece is computed while this one is used.
        pieces = pieces.map(self._order).prefetch(1)
        slices = tf.data.Dataset.from_tensor_slices
        if examples.alone and self._map is not None:

            def from_index(index: tf.Tensor, *seed: tf.Tensor) -> Any:
                return self._made(examples.take(index), *seed)

            singles = pieces.flat_map(lambda *order: slices(order))
            return self._mapped(singles, from_index).batch(size, drop_remainder=static)

        @_plain
        def rows(*order: tf.Tensor) -> tf.data.Dataset:
            each = tf.minimum(tf.size(order[0]), size)
            return slices(tuple(tf.reshape(x, [-1, each, *x.shape[1:]]) for x in order))

        @_plain
        def take(indices: tf.Tensor, *seeds: tf.Tensor) -> Any:
            found = examples.take(tf.ensure_shape(indices, [size if static else None]))
            return {"example": found, "seed": seeds} if one_by_one else found

        one_by_one = examples.decode is not None or self._map is not None
        found = self._mapped(pieces.flat_map(rows), take)
        if not one_by_one:
            return found
        found = found.unbatch()
        found = self._mapped(found, lambda both: self._made(both["example"], *both["seed"]))
        return found.batch(size, drop_remainder=static)

    def _mapped(self, dataset: tf.data.Dataset, function: Callable[..., Any]) -> tf.data.Dataset:
        ordered = None if self._calls is None else True  # TensorFlow warns of what has no effect
        return dataset.map(function, self._calls, deterministic=ordered)

    def _ordered(self, positions: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Which examples are at these positions, and the seeds of `map` if it takes them."""
        if self._shuffle:
            indices = permutation.shuffled(positions, len(self), self._seed)
        else:
            indices = tf.math.floormod(positions, len(self))
        seeds = (permutation.seeds(positions, self._seed),) if self._map_seeded else ()
        return (indices, *seeds)

    # Autograph looks into the two below for the sake of the functions that they call.

    def _made(self, example: Any, *seed: tf.Tensor) -> Any:
        if self._examples.decode is not None:
            example = self._examples.decode(example)
        return example if self._map is None else self._map(example, *seed)

    def _map_batch(self, number: tf.Tensor, batch: Any) -> Any:
        assert self._batch_map is not None
        # Batches count downwards, so that none has the seed of an example.
        seed = (permutation.seeds(-1 - number, self._seed),) if self._batch_map_seeded else ()
        return self._batch_map(batch, *seed)


@_plain
def _part(spec: Any, elements: tuple, shard: int, shards: int) -> Any:
    # tf.data hands the parts of a tuple over one by one.
    batch = tf.nest.pack_sequence_as(spec, tf.nest.flatten(elements))
    size = batches.count(batch)
    return batches.part(batch, *batches.bounds(size, shards, shard))


def _integer(name: str, value: Any, *, least: int | None = None) -> int:
    try:
        found = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        found = None
    if found is None or (least is not None and found < least):
        bound = "" if least is None else f" of at least {least}"
        raise DataError(f"{name} must be an integer{bound}; got {value!r}.")
    return found


def _takes_seed(name: str, what: str, function: Callable[..., Any] | None) -> bool:
    """Whether it takes a seed beside its example. Raises DataError if neither fits."""
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
