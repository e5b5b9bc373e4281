"""Notices which random generators of Python code are drawn from. Host code.

    watch = RandomStates(dataset_class, augment)
    augment(example)
    watch.moved()                        # ["np.random", "rng (Generator)"]
    watch.restore()

It looks at the global generators of Python and NumPy, and at generators that the given functions
and objects can reach.
"""

import random
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfloss.common.reachable import find_objects

_KINDS: dict[type, Callable[[Any], Any]] = {
    np.random.Generator: lambda one: one.bit_generator.state,
    np.random.RandomState: lambda one: one.get_state(),
    random.Random: lambda one: one.getstate(),
    keras.random.SeedGenerator: lambda one: one.state.numpy(),
    tf.random.Generator: lambda one: one.state.numpy(),
}


class RandomStates:
    """The states of random generators at one moment.

    Args:
      *roots: Functions and objects whose generators are watched, beside the global ones.
    """

    def __init__(self, *roots: Any):
        found = [pair for root in roots for pair in find_objects(root, tuple(_KINDS))]
        self._global = random.getstate(), np.random.get_state(legacy=True)
        with np.printoptions(threshold=2**31 - 1):  # the global generators have names of their own
            known = {repr(random.getstate()), repr(np.random.get_state())}
        self._generators = {
            f"{path} ({type(one).__name__})": (one, _read(one))
            for path, one in found
            # A SystemRandom has no state.
            if not isinstance(one, random.SystemRandom) and _read(one) not in known
        }

    def moved(self) -> list[str]:
        """Returns the names of the generators that were drawn from since."""
        now = random.getstate(), np.random.get_state(legacy=True)
        names = ("Python's random", "np.random")
        pairs = zip(names, self._global, now, strict=True)
        found = [name for name, before, after in pairs if not _same(before, after)]
        generators = self._generators.items()
        return found + [k for k, (one, before) in generators if before != _read(one)]

    def restore(self) -> None:
        """Sets the global generators to their states at that moment."""
        random.setstate(self._global[0])
        np.random.set_state(self._global[1])


def _same(before: Any, after: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def _read(generator: Any) -> str:
    """Returns the state of a generator as a text that differs if the state does."""
    state = next(read for kind, read in _KINDS.items() if isinstance(generator, kind))(generator)
    with np.printoptions(threshold=2**31 - 1):
        return repr(state)
