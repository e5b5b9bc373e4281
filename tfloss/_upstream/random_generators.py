"""What tfloss needs to know about the random generators of the process and op determinism."""

import contextlib
import random
from collections.abc import Collection, Generator
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.random import seed_generator
from keras.src.utils import rng_utils
from tensorflow.python.framework import config
from tensorflow.python.ops import stateful_random_ops


def op_determinism_enabled() -> bool:
    """Returns whether op determinism is on. Only the function that turns it on is public."""
    return config.is_op_determinism_enabled()


def global_generators(make: Collection[str] = ()) -> dict[str, Any]:
    """Returns the state variables of the global generators, under "tensorflow" and "keras".

    Each is created at its first use, and asking for it creates it. Whether one exists is not
    public, nor is the one of Keras.

    Args:
      make: Generators to create if they don't exist.
    """
    found: dict[str, Any] = {}
    if "tensorflow" in make or stateful_random_ops.global_generator is not None:
        found["tensorflow"] = tf.random.get_global_generator().state
    if "keras" in make or _of_this_thread() is not None:
        found["keras"] = seed_generator.global_seed_generator().state
    return found


def process_is_seeded() -> bool:
    """Returns whether `keras.utils.set_random_seed` was called. Keras keeps the seed to itself."""
    return rng_utils.get_random_seed() is not None


_KERAS = seed_generator.GLOBAL_SEED_GENERATOR
_REPLICAS = "_tfloss_keras_generator"  # attribute of a strategy, so that it lives as long


class _ReplicaSeedGenerator(keras.random.SeedGenerator):
    """Gives each replica seeds of its own, though the state is the same on all of them."""

    _STRIDE = 1_000_003

    def next(self, ordered: bool = True) -> Any:
        """Returns the next seed of the current replica. Replica code, traced."""
        seed: Any = super().next(ordered)
        context = tf.distribute.get_replica_context()
        index = 0 if context is None else context.replica_id_in_sync_group
        offset = tf.cast(index, seed.dtype) * tf.constant(self._STRIDE, seed.dtype)
        return seed + tf.stack([offset, tf.zeros_like(offset)])


def replicas_have_threads(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether `strategy.run` may use other threads, even with one replica."""
    return strategy.num_replicas_in_sync > 1 or isinstance(
        strategy, tf.distribute.MirroredStrategy | tf.distribute.MultiWorkerMirroredStrategy
    )


def keras_generator(strategy: tf.distribute.Strategy | None) -> keras.random.SeedGenerator:
    """Returns what `keras.random.normal(shape)` without a seed draws from in a forward pass.

    It is the global generator of Keras, if the forward pass runs in this thread. Keras has one for
    each thread. The thread of a replica would have to make its own, in the middle of a trace, and
    no checkpoint would hold it. So a strategy whose replicas have threads has a generator, that
    gives each replica seeds of its own. Host code, in the main thread.

    Args:
      strategy: The strategy that the forward pass runs under. None: no matter which, Keras's own.
    """
    if strategy is None or not replicas_have_threads(strategy):
        if _of_this_thread() is None:
            before = random.getstate()  # it takes its seed from Python
            seed_generator.global_seed_generator()
            random.setstate(before)
        return seed_generator.global_seed_generator()
    found: Any = getattr(strategy, _REPLICAS, None)
    if found is None:
        with strategy.scope():
            found = _ReplicaSeedGenerator(0, name="keras_random")
        setattr(strategy, _REPLICAS, found)
    return found


def keras_generator_states(strategy: tf.distribute.Strategy) -> list[keras.Variable]:
    """Returns the state of `keras_generator`, if there is one already."""
    threads = replicas_have_threads(strategy)
    found = getattr(strategy, _REPLICAS, None) if threads else _of_this_thread()
    return [] if found is None else [found.state]


def _of_this_thread() -> Any:
    return global_state.get_global_attribute(_KERAS)


@contextlib.contextmanager
def keras_generator_of_strategy() -> Generator[None]:
    """Inside the `with`, Keras uses the generator of the current strategy in this thread.

    Yields:
      None.
    """
    generator = getattr(tf.distribute.get_strategy(), _REPLICAS, None)
    if generator is None:
        yield
        return
    before = _of_this_thread()
    global_state.set_global_attribute(_KERAS, generator)
    try:
        yield
    finally:
        global_state.set_global_attribute(_KERAS, before)
