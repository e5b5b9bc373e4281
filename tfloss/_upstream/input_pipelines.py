"""What tfloss needs to know about `tf.data` data sets and iterators."""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf


def next_in_this_thread(iterator: Any) -> Any:
    """Returns the next element of a `tf.data` iterator that is known to have one. Traced.

    In a function, `next(iterator)` switches to another thread and back for each element; the op
    that eager code runs does not. The op is public; the handle that it needs is not.
    """
    spec = iterator.element_spec
    flat = tf.nest.flatten(spec)
    values = tf.raw_ops.IteratorGetNextSync(
        iterator=iterator._iterator_resource,
        output_types=[one.dtype for one in flat],
        output_shapes=[one.shape for one in flat],
    )
    return tf.nest.pack_sequence_as(spec, values)


def datasets_below(dataset: Any) -> list[Any]:
    """Returns a data set and all data sets it is made of. Nothing public tells."""
    found: dict[int, Any] = {}
    todo: list[Any] = [dataset]
    while todo:
        one = todo.pop()
        if id(one) not in found:
            found[id(one)] = one
            todo += one._inputs()
    return list(found.values())


def likely_batch_size(dataset: Any) -> int | None:
    """Returns the size that the last batching of a data set was given, or None if there is none.

    Where the last batch may be smaller, the types of the elements don't tell. Nothing public does.
    """
    for one in datasets_below(dataset):  # the nearest first
        size = getattr(one, "_batch_size", None)
        if size is not None and (size := tf.get_static_value(size)) is not None:
            return int(size)
    return None


def dataset_graphs(dataset: Any) -> list[Any]:
    """Returns the graphs of the traced functions that a data set itself calls (`map`, `filter`).

    Nothing public tells.
    """
    return [one.function.graph for one in dataset._functions()]


def dataset_seeds(dataset: Any) -> tuple[int, int] | None:
    """Returns both seeds of a data set that draws random numbers, or None for another one.

    The seeds (0, 0) mean that each process draws other numbers. Nothing public tells.
    """
    if not hasattr(dataset, "_seed2"):
        return None
    return int(dataset._seed), int(dataset._seed2)


def reshuffles(dataset: Any) -> int:
    """Returns how many shuffles a data set has, if the order differs between its passes; else 0.

    A cache keeps the order of the first pass. Nothing public tells.
    """
    below = datasets_below(dataset)
    if any("Cache" in type(one).__name__ for one in below):
        return 0
    shuffles = [one for one in below if hasattr(one, "_reshuffle_each_iteration")]
    again = any(one._reshuffle_each_iteration is not False for one in shuffles)
    return len(shuffles) if again else 0


def cache_files(dataset: Any) -> list[str]:
    """Returns the files of all `cache(filename)` that a data set is made of. Nothing public tells.

    Those inside of the functions of `flat_map` and `interleave` are not found.
    """
    names = (getattr(one, "_filename", None) for one in datasets_below(dataset))
    static = (None if name is None else tf.get_static_value(name) for name in names)
    return [name.decode() for name in static if isinstance(name, bytes) and name]


def saved_shuffles(files: Mapping[str, bytes]) -> int:
    """Returns how many shuffles the saved state of an iterator holds. Its format is not public.

    Batching and prefetching drop the iterator below them when it ends. In a new process the next
    pass over a shuffle that was dropped has the order of another pass.
    """
    return sum(content.count(b"epoch_num_random_samples") for content in files.values())


def dataset_order(dataset: Any) -> str:
    """Returns the argument `deterministic` of a parallel data set: "true", "false" or "default".

    Nothing public tells.
    """
    return str(getattr(dataset, "_deterministic", "default"))
