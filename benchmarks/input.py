"""The speed of `tfloss.data.Source` and of Python loaders against bare `tf.data` on the same work.

    python benchmarks/input.py                      # all
    python benchmarks/input.py arrays records loaders --rounds=5

Both read the same examples alternately, in one graph, without the autotuner. A ratio below 1 means
that tfloss takes less time. Of arrays, also the time to start anywhere is measured. The maps cast
each image and flip it, always or at random. Records are TFRecord files of serialized examples,
which bare `tf.data` shuffles in a buffer of 1,000. Loaders are Python objects: bare `tf.data` calls
them with `tf.numpy_function`, and generators with `from_generator`.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import argparse
import math
import tempfile
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import tensorflow as tf
from _timing import interleaved, ratio

import tfloss.data
from tfloss.data.iterables import iterated
from tfloss.data.tfds_records import RecordFiles

BATCH = 32
SIZES = (  # shape, examples, batches per round: of arrays without and with the map, of the rest
    ((28, 28, 1), 10_000, 6_000, 600, 300),
    ((224, 224, 3), 1_000, 600, 150, 60),
)


def augment(example: dict, seed: tf.Tensor) -> dict:
    """Casts an image and flips it at random. The seed is that of its position."""
    image = tf.cast(example["image"], tf.float32) / 255
    return {**example, "image": tf.image.stateless_random_flip_left_right(image, seed)}


def seeded(example: dict) -> dict:
    """Does the same work in a pipeline without seeds: the seed is made of the label."""
    return augment(example, tf.stack([0, tf.cast(example["label"], tf.int32)]))


def flipped(example: dict) -> dict:
    """Casts an image and flips it always."""
    return {**example, "image": tf.image.flip_left_right(tf.cast(example["image"], tf.float32))}


def puller(dataset: tf.data.Dataset, number: int) -> Callable[[], object]:
    """Returns a function that reads the next `number` batches."""
    options = tf.data.Options()
    options.autotune.enabled = False
    iterator = iter(dataset.with_options(options))

    @tf.function
    def pull() -> tf.Tensor:
        total = tf.constant(0, tf.int64)
        for _ in tf.range(number):
            total += next(iterator)["label"][0]
        return total

    return pull


def compare(
    what: str, bare: tf.data.Dataset, ours: tf.data.Dataset, number: int, rounds: int
) -> None:
    """Measures two data sets of the same batches, and prints a line.

    Args:
      what: The beginning of the line.
      bare: The one without tfloss.
      ours: The one of tfloss.
      number: Batches in a round.
      rounds: The number of rounds.
    """
    pullers = {"bare": puller(bare, number), "ours": puller(ours, number)}
    seconds = interleaved(pullers, rounds)
    median, low, high = ratio(seconds, "ours", "bare")
    leaves = tf.nest.flatten(ours.element_spec)
    size = sum(one.dtype.size * BATCH * math.prod(one.shape[1:]) for one in leaves)
    rates = {key: number / sorted(s)[len(s) // 2] for key, s in seconds.items()}
    each = "; ".join(
        f"{key} {rate:,.0f} batches/s, {rate * size / 1e6:,.0f} MB/s" for key, rate in rates.items()
    )
    print(
        f"{what}: ours / bare {median:.3f} (quartiles {low:.3f} to {high:.3f}); {each}", flush=True
    )


def arrays(examples: dict, numbers: tuple[int, ...], rounds: int) -> None:
    """Measures sources of arrays."""
    count = len(examples["label"])
    maps = {"no map": (None, None), "cast, flip": (flipped, flipped), "random": (seeded, augment)}
    shape = examples["image"].shape[1:]
    for name, (theirs, ours) in maps.items():
        base = tf.data.Dataset.from_tensor_slices(examples).shuffle(count).repeat()
        if theirs is not None:
            base = base.map(theirs, tf.data.AUTOTUNE)
        source = tfloss.data.Source(examples, batch_size=BATCH, map=ours)
        number = numbers[theirs is not None]
        what = f"arrays {shape}, {name}"
        compare(what, base.batch(BATCH, drop_remainder=True), source.dataset(), number, rounds)
    source = tfloss.data.Source(examples, batch_size=BATCH)
    seconds = interleaved(
        {str(start): lambda start=start: next(iter(source.dataset(start))) for start in (0, 10**9)},
        rounds,
    )
    median, low, high = ratio(seconds, str(10**9), "0")
    print(
        f"arrays {shape}, first batch at 10^9 / at 0: {median:.3f} (quartiles {low:.3f} to "
        f"{high:.3f}); {1e3 * sorted(seconds['0'])[rounds // 2]:.0f} ms"
    )


def records(examples: dict, numbers: tuple[int, ...], rounds: int) -> None:
    """Measures a source of TFRecord files, of which each record is an example."""
    shape, count = examples["image"].shape[1:], len(examples["label"])

    def parse(record: tf.Tensor) -> dict:
        features = {
            "image": tf.io.FixedLenFeature([], tf.string),
            "label": tf.io.FixedLenFeature([], tf.int64),
        }
        found = tf.io.parse_single_example(record, features)
        image = tf.reshape(tf.io.decode_raw(found["image"], tf.uint8), shape)
        return {"image": image, "label": found["label"]}

    with tempfile.TemporaryDirectory() as folder:
        parts = []
        for part in range(4):
            mine = range(part * count // 4, (part + 1) * count // 4)
            parts.append(SimpleNamespace(filename=f"{folder}/{part}.tfrecord", skip=0))
            parts[-1].take = parts[-1].examples_in_shard = len(mine)
            with tf.io.TFRecordWriter(parts[-1].filename) as writer:
                for i in mine:
                    writer.write(_serialized(examples["image"][i], i))
        bare = tf.data.TFRecordDataset([one.filename for one in parts])
        bare = bare.shuffle(1_000).repeat().map(parse, tf.data.AUTOTUNE)
        source = tfloss.data.Source(RecordFiles(parts), batch_size=BATCH, map=parse)
        what = f"records {shape}"
        bare = bare.batch(BATCH, drop_remainder=True)
        compare(what, bare, source.dataset(), numbers[2], rounds)


def _serialized(image: np.ndarray, label: int) -> bytes:
    features = {
        "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image.tobytes()])),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


class Items:
    """A sequence of examples, as a loader of Grain or torch has it."""

    def __init__(self, examples: dict):
        self.examples = examples

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self.examples["label"])

    def __getitem__(self, index: int) -> dict:
        """Returns one example."""
        return {key: value[index] for key, value in self.examples.items()}


class ManyItems(Items):
    """The same, with a method for several examples."""

    def __getitems__(self, indices: list[int]) -> list[dict]:
        """Returns several examples."""
        return [self[i] for i in indices]


def loaders(examples: dict, numbers: tuple[int, ...], rounds: int) -> None:
    """Measures sources of Python objects, and a generator function of batches."""
    shape, count = examples["image"].shape[1:], len(examples["label"])
    specs = {
        "image": tf.TensorSpec([BATCH, *shape], tf.uint8),
        "label": tf.TensorSpec([BATCH], tf.int64),
    }
    items = Items(examples)

    def read(index: tf.Tensor) -> dict:
        def get(i: np.ndarray) -> list[Any]:
            return list(items[int(i)].values())

        image, label = tf.numpy_function(get, [index], [tf.uint8, tf.int64])
        return {"image": tf.ensure_shape(image, shape), "label": tf.ensure_shape(label, [])}

    for each in (Items, ManyItems):
        bare = tf.data.Dataset.range(count).shuffle(count).repeat().map(read, tf.data.AUTOTUNE)
        source = tfloss.data.Source(each(examples), batch_size=BATCH)
        what = f"{each.__name__} {shape}"
        bare = bare.batch(BATCH, drop_remainder=True)
        compare(what, bare, source.dataset(), numbers[2], rounds)

    def batches() -> Iterator[dict]:
        for start in range(0, count - BATCH + 1, BATCH):
            yield {key: value[start : start + BATCH] for key, value in examples.items()}

    bare = tf.data.Dataset.from_generator(batches, output_signature=specs).repeat()
    ours = iterated(batches, training=True, seed=0)
    compare(f"generator {shape}", bare, ours, 4 * numbers[2], rounds)


KINDS = {one.__name__: one for one in (arrays, records, loaders)}


def main() -> None:
    """Runs the benchmark and prints its results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", choices=[[], *KINDS], default=[])
    parser.add_argument("--rounds", type=int, default=15)
    flags = parser.parse_args()
    for shape, count, *numbers in SIZES:
        images = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
        examples = {"image": images, "label": np.arange(count)}
        for kind in flags.kinds or KINDS:
            KINDS[kind](examples, tuple(numbers), flags.rounds)


if __name__ == "__main__":
    main()
