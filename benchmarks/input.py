"""The speed of `tfloss.data.Source` against `shuffle().batch()`, and the time to start anywhere.

    python benchmarks/input.py

Both read the same arrays alternately, in one graph, without the autotuner. A ratio below 1 means
that the source takes less time. The maps cast each image and flip it, always or at random.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

from collections.abc import Callable

import numpy as np
import tensorflow as tf
from _timing import interleaved, ratio

import tfloss.data

BATCH = 32
ROUNDS = 15
SIZES = (  # shape, examples, batches per round without and with the map
    ((28, 28, 1), 10_000, 6_000, 600),
    ((224, 224, 3), 1_000, 600, 150),
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


def main() -> None:
    """Runs the benchmark and prints its results."""
    maps = {"no map": (None, None), "cast, flip": (flipped, flipped), "random": (seeded, augment)}
    for shape, examples, *numbers in SIZES:
        images = np.random.default_rng(0).integers(0, 256, (examples, *shape), dtype=np.uint8)
        arrays = {"image": images, "label": np.arange(examples)}
        for name, (theirs, ours) in maps.items():
            base = tf.data.Dataset.from_tensor_slices(arrays).shuffle(examples).repeat()
            if theirs is not None:
                base = base.map(theirs, tf.data.AUTOTUNE)
            source = tfloss.data.Source(arrays, batch_size=BATCH, map=ours)
            number = numbers[theirs is not None]
            seconds = interleaved(
                {
                    "shuffle": puller(base.batch(BATCH), number),
                    "source": puller(source.dataset(), number),
                },
                ROUNDS,
            )
            median, low, high = ratio(seconds, "source", "shuffle")
            each = {key: 1e6 * sorted(s)[len(s) // 2] / number for key, s in seconds.items()}
            print(
                f"{shape}, {name}: source / shuffle {median:.3f} (quartiles {low:.3f} to "
                f"{high:.3f}); {each['source']:.0f} and {each['shuffle']:.0f} us a batch"
            )
        source = tfloss.data.Source(arrays, batch_size=BATCH)
        seconds = interleaved(
            {
                str(start): lambda start=start, one=source: next(iter(one.dataset(start)))
                for start in (0, 10**9)
            },
            ROUNDS,
        )
        median, low, high = ratio(seconds, str(10**9), "0")
        print(
            f"{shape}, first batch at 10^9 / at 0: {median:.3f} (quartiles {low:.3f} to "
            f"{high:.3f}); {1e3 * sorted(seconds['0'])[ROUNDS // 2]:.0f} ms"
        )


if __name__ == "__main__":
    main()
