"""Input pipelines whose training is killed: one for each transformation that people use.

Each is a function of the run's folder that returns batches of {"image", "label"} of the digits, of
about BATCH examples each.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.datasets
import tensorflow as tf

BATCH = 32
Data = tf.data.Dataset


def arrays() -> dict[str, np.ndarray]:
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    return {"image": (images / 16).astype(np.float32), "label": labels.astype(np.int64)}


def examples() -> Data:
    return Data.from_tensor_slices(arrays())


def batched(data: Data) -> Data:
    return data.batch(BATCH, drop_remainder=True)


def brighter(example: Any) -> Any:
    return {**example, "image": 1.1 * example["image"]}


def part(number: Any) -> Data:
    """The examples of one of six files."""
    return examples().shard(6, number)


def generated() -> Any:
    """A generator function of examples."""
    found = arrays()
    for image, label in zip(found["image"], found["label"], strict=True):
        yield {"image": image, "label": label}


def spec() -> Any:
    return {"image": tf.TensorSpec([64], tf.float32), "label": tf.TensorSpec([], tf.int64)}


def from_files(folder: Path) -> Data:
    """TFRecord files of examples, read in an interleave."""
    paths = [str(folder / f"{number}.tfrecord") for number in range(4)]
    if not Path(paths[-1]).exists():
        folder.mkdir(parents=True, exist_ok=True)
        for number, path in enumerate(paths):
            with tf.io.TFRecordWriter(path) as writer:
                for one in examples().shard(4, number).as_numpy_iterator():
                    writer.write(one["image"].tobytes() + one["label"].tobytes())

    def parse(record: tf.Tensor) -> Any:
        parts = tf.strings.substr(record, 0, 256), tf.strings.substr(record, 256, 8)
        image, label = (
            tf.io.decode_raw(x, kind) for x, kind in zip(parts, (tf.float32, tf.int64), strict=True)
        )
        return {"image": tf.ensure_shape(image, [64]), "label": label[0]}

    files = Data.from_tensor_slices(paths).shuffle(4, seed=1)
    records = files.interleave(tf.data.TFRecordDataset, cycle_length=2, block_length=3)
    return batched(records.map(parse).shuffle(100, seed=2).repeat())


def cached_in_a_file(folder: Path) -> Data:
    folder.mkdir(parents=True, exist_ok=True)
    for lock in folder.glob("*.lockfile"):  # of a process that was killed, as the error advises
        lock.unlink()
    return batched(examples().cache(str(folder / "cache")).shuffle(300, seed=6).repeat())


def by_window() -> Data:
    """Batches of examples of one label each, some of them smaller."""
    grouped = examples().group_by_window(
        key_func=lambda one: one["label"],
        reduce_func=lambda key, data: data.batch(BATCH),
        window_size=BATCH,
    )
    return grouped.repeat()


def windows() -> Data:
    def joined(window: Any) -> Data:
        return Data.zip({key: one.batch(BATCH) for key, one in window.items()})

    return examples().repeat().window(BATCH, shift=BATCH // 2, drop_remainder=True).flat_map(joined)


def scanned() -> Data:
    """Pictures that become brighter from example to example."""

    def add(state: tf.Tensor, example: Any) -> Any:
        factor = 1.0 + tf.cast(state % 7, tf.float32) / 10
        return state + 1, {**example, "image": factor * example["image"]}

    return batched(examples().repeat().scan(tf.constant(0, tf.int64), add))


def resampled() -> Data:
    """All labels alike, by leaving some examples out at random."""
    resampled = (
        examples()
        .repeat()
        .rejection_resample(
            class_func=lambda one: tf.cast(one["label"] < 3, tf.int32),
            target_dist=[0.65, 0.35],
            initial_dist=[0.7, 0.3],
            seed=3,
        )
    )
    return batched(resampled.map(lambda label, one: one))


def mixed() -> Data:
    parts = [part(number).repeat() for number in range(3)]
    return batched(Data.sample_from_datasets(parts, [0.5, 0.3, 0.2], seed=4))


def chosen() -> Data:
    choice = Data.range(3).repeat()
    parts = [part(number).repeat() for number in range(3)]
    return batched(Data.choose_from_datasets(parts, choice))


def drawn() -> Data:
    """Augmentation with the numbers of `Dataset.random`."""
    numbers = Data.random(seed=5)

    def noisy(one: Any, number: tf.Tensor) -> Any:
        noise = tf.random.stateless_normal([64], tf.stack([number, 1]), stddev=0.1)
        return {**one, "image": one["image"] + noise}

    return batched(Data.zip((examples().repeat(), numbers)).map(noisy))


PIPELINES: dict[str, Callable[[Path], Data]] = {
    "map": lambda folder: batched(examples().map(brighter).repeat()),
    "parallel_map": lambda folder: batched(
        examples().repeat().map(brighter, num_parallel_calls=2)
    ).prefetch(2),
    "filter": lambda folder: batched(examples().filter(lambda one: one["label"] < 8).repeat()),
    "flat_map": lambda folder: batched(Data.range(6).flat_map(part).repeat()),
    "interleave": lambda folder: batched(
        Data.range(6).interleave(part, cycle_length=3, block_length=2).repeat()
    ),
    "parallel_interleave": lambda folder: batched(
        Data.range(6)
        .interleave(part, cycle_length=3, num_parallel_calls=2, deterministic=True)
        .repeat()
    ),
    "files": from_files,
    "concatenate": lambda folder: batched(part(0).concatenate(part(1)).repeat()),
    "zip": lambda folder: batched(
        Data.zip({key: Data.from_tensor_slices(value) for key, value in arrays().items()}).repeat()
    ),
    "sample": lambda folder: mixed(),
    "choose": lambda folder: chosen(),
    "random": lambda folder: drawn(),
    "cache": lambda folder: batched(examples().cache().shuffle(300, seed=6).repeat()),
    "cache_file": cached_in_a_file,
    "generator": lambda folder: batched(
        Data.from_generator(generated, output_signature=spec()).repeat()
    ),
    "shuffle_after_repeat": lambda folder: batched(examples().repeat().shuffle(500, seed=7)),
    "shuffle_once": lambda folder: batched(
        examples().shuffle(500, seed=8, reshuffle_each_iteration=False).repeat()
    ),
    "unbatch": lambda folder: batched(examples().batch(50).unbatch().repeat()),
    "rebatch": lambda folder: examples().repeat().batch(50).rebatch(BATCH, drop_remainder=True),
    "padded_batch": lambda folder: examples().repeat().padded_batch(BATCH, drop_remainder=True),
    "short_batches": lambda folder: examples().shuffle(500, seed=9).batch(BATCH).repeat(),
    "by_window": lambda folder: by_window(),
    "windows": lambda folder: windows(),
    "scan": lambda folder: scanned(),
    "resample": lambda folder: resampled(),
    "take_skip": lambda folder: batched(examples().skip(100).take(900).repeat()),
    "take_while": lambda folder: batched(
        examples()
        .enumerate()
        .take_while(lambda index, one: index < 800)
        .map(lambda index, one: one)
        .repeat()
    ),
}
