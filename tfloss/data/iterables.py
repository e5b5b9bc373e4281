"""Batches that can only be read in order: of a generator function or a `torch` loader. Host code.

A resumed run reads them again, up to its position.
"""

import contextlib
import inspect
import itertools
import multiprocessing
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfloss.data.fit_arrays import fit_arrays
from tfloss.data.item_structure import ItemStructure
from tfloss.data.seekable import Dataset
from tfloss.errors import DataError

_CURE = (
    "Pad all batches to one shape, or use tf.data.Dataset.from_generator(function, "
    "output_signature=...) with those dimensions open."
)
_TORCH = threading.Lock()  # two readers must not exchange the state of torch's generator at once


def is_loader(data: Any) -> bool:
    """Returns whether an object is a `torch.utils.data.DataLoader`. It doesn't import torch."""
    return any(
        one.__name__ == "DataLoader" and one.__module__.startswith("torch.utils.data")
        for one in type(data).__mro__
    )


def is_iterable(data: Any) -> bool:
    """Returns whether `iterated` reads an object: a loader, or a generator function."""
    return is_loader(data) or inspect.isgeneratorfunction(data)


def pass_length(data: Any) -> int | None:
    """Returns the number of batches in a pass over a loader, or None if it doesn't know it."""
    if not is_loader(data):
        return None
    try:
        return len(data)
    except TypeError:  # of an IterableDataset
        return None


def iterated(data: Any, *, training: bool, seed: int) -> Dataset:
    """Returns the batches of a generator function or a loader.

    The first two batches decide on the structure; the number of examples is left open, unless a
    loader drops a smaller last batch. As in `fit`, a list of arrays becomes a tuple, and floats get
    Keras's `floatx`. What a loader and its data set draw from torch's global generator depends on
    `seed` and the number of the pass alone.

    Args:
      data: The function or the loader.
      training: Whether to repeat the passes without end, each by a new call or iterator.
      seed: Integer seed for torch.

    Raises:
      DataError: There is no batch.
    """
    _warn_of_forks(data)
    name = getattr(data, "__name__", type(data).__name__)
    with contextlib.closing(_one_pass(data, seed, 0)) as one_pass:
        first = list(itertools.islice(one_pass, 2))
    if not first:
        raise DataError(f"{name} yields no batch. A pass over the data needs at least one.")
    open_rows = not getattr(data, "drop_last", False)
    structure = ItemStructure.of(first, open_rows=open_rows, cure=_CURE)

    def batches() -> Iterator[Any]:
        for number in itertools.count() if training else [0]:
            count = 0
            for batch in _one_pass(data, seed, number):
                yield tuple(structure.arrays(f"Batch {count} of {name}", batch))
                count += 1
            if not count:
                raise DataError(f"{name} yields no batch in pass {number}, counted from 0.")

    dataset = tf.data.Dataset.from_generator(batches, output_signature=tuple(structure.specs))
    dataset = dataset.map(
        tf.autograph.experimental.do_not_convert(lambda *leaves: structure.packed(leaves))
    )
    if training:
        dataset = dataset.apply(
            tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
        )
    return dataset


def _warn_of_forks(data: Any) -> None:
    """Warns of a loader whose workers are forks of this process, which has TensorFlow's threads."""
    workers: int = getattr(data, "num_workers", 0)
    if not is_loader(data) or not workers:
        return
    context = data.multiprocessing_context
    method = multiprocessing.get_start_method(allow_none=True) if context is None else None
    method = method or (context or multiprocessing.get_context()).get_start_method()
    if method == "fork":
        warnings.warn(
            f"{type(data).__name__}(num_workers={workers}) forks this process. TensorFlow has "
            "threads in it, and what they lock stays locked in a fork, so a worker may hang. Give "
            "the loader multiprocessing_context='forkserver' and persistent_workers=True.",
            stacklevel=2,
        )


def _one_pass(data: Any, seed: int, number: int) -> Generator[Any, None, None]:
    """Yields the batches of one pass, as `fit` takes them."""
    if not is_loader(data):
        yield from map(fit_arrays, data())
        return
    state = _TorchState(seed, number)
    iterator = state.call(iter, data)
    while (batch := state.call(next, iterator, None)) is not None:
        yield fit_arrays(batch)


class _TorchState:
    """A state of torch's global generator that only these calls use."""

    def __init__(self, *seed: int):
        self._torch: Any = sys.modules["torch"]
        words = np.random.SeedSequence([one & 2**64 - 1 for one in seed]).generate_state(1)
        self._state = self._torch.Generator().manual_seed(int(words[0])).get_state()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a function with this state, which it may change; the outer state is kept."""
        with _TORCH:
            outer = self._torch.get_rng_state()
            self._torch.set_rng_state(self._state)
            try:
                return function(*arguments)
            finally:
                self._state = self._torch.get_rng_state()
                self._torch.set_rng_state(outer)
