"""Random states: each replica's own for the model's seed generators; those of the process.

Keras keeps the state of a seed generator (Dropout's, ...) in one mirrored variable, so all
replicas draw the same masks. Here the state of replica r is that of replica 0 plus r * STRIDE.
So a checkpoint needs replica 0's only: resumed on as many replicas, a run continues exactly; on
another number of replicas only the first one draws the same numbers as before. Host code,
cross-replica.
"""

import random
from collections.abc import Collection, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfloss import _upstream
from tfloss.checkpoint import read

STRIDE = 1_000_003


def set_seed(model: keras.Model, seed: int) -> None:
    """Sets all seed generators to states derived from `seed`, the same on all replicas.

    Args:
      model: A built model.
      seed: A non-negative integer.
    """
    states = [state for _, state in _upstream.seed_states(model)]
    numbers = np.random.SeedSequence(seed).generate_state(max(len(states), 1))
    for state, number in zip(states, numbers, strict=False):
        state.assign(np.array([int(number) % 2**30, 0], dtype=state.dtype))


def split_seeds(model: keras.Model, strategy: tf.distribute.Strategy) -> None:
    """Sets the states of each replica to those of the first one plus a multiple of STRIDE.

    Args:
      model: A built model.
      strategy: The strategy in whose scope the model was created.
    """
    states = [state.value for _, state in _upstream.seed_states(model)]
    if strategy.num_replicas_in_sync == 1 or not states:
        return

    def replica() -> None:
        context = tf.distribute.get_replica_context()
        index = int(tf.get_static_value(context.replica_id_in_sync_group))
        mine = tf.stack([tf.cast(state, tf.int64) for state in states])
        # The first replica may be on another worker, so its states are broadcast by a sum.
        first = context.all_reduce(tf.distribute.ReduceOp.SUM, mine if index == 0 else mine * 0)
        for state, value in zip(states, tf.unstack(first), strict=True):
            state.assign(
                tf.cast(value, state.dtype) + tf.constant([STRIDE * index, 0], state.dtype)
            )

    # Strategies warn of functions that they run eagerly.
    tf.function(lambda: strategy.run(replica), autograph=False)()


def drawn_states(model: keras.Model) -> list[Any]:
    """The states that a forward pass draws from: those of the model, and that of `keras.random`.

    Args:
      model: A built model. The states are those for the current strategy.
    """
    shared = _upstream.keras_generator_states(tf.distribute.get_strategy())
    return [*(state for _, state in _upstream.seed_states(model)), *shared]


def begin_keras_random(strategy: tf.distribute.Strategy) -> None:
    """Makes the generator that `keras.random` without a seed draws from, before the first trace.

    In a strategy whose replicas have threads of their own, its state is at first that of the global
    generator of Keras.

    Args:
      strategy: The strategy that forward passes run under.
    """
    state = _upstream.keras_generator(strategy).state
    if _upstream.replicas_have_threads(strategy):
        process = _upstream.keras_generator(None).state
        state.assign(process.numpy())


def process_variables(strategy: tf.distribute.Strategy) -> list[Any]:
    """The states of TensorFlow's and Keras's global generators, as far as they exist.

    Args:
      strategy: The strategy that forward passes run under.
    """
    return list(_global_states(strategy).values())


def _global_states(strategy: tf.distribute.Strategy, make: Collection[str] = ()) -> dict[str, Any]:
    """The states of the global generators by name; Keras's is that of the forward passes."""
    found = _upstream.global_generators(make)
    if _upstream.replicas_have_threads(strategy):
        found["keras"] = _upstream.keras_generator(strategy).state
    return found


def process_states(strategy: tf.distribute.Strategy) -> dict[str, Any]:
    """Reads the states of the global generators of Python, NumPy, TensorFlow and Keras.

    Args:
      strategy: The strategy that forward passes run under.

    Returns:
      JSON values.
    """
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "variables": replay_states(strategy),
    }


def replay_states(strategy: tf.distribute.Strategy) -> dict[str, Any]:
    """Reads the states of TensorFlow's and Keras's global generators, as far as they exist.

    Args:
      strategy: The strategy that forward passes run under.

    Returns:
      JSON values.
    """
    return {name: read(state).tolist() for name, state in _global_states(strategy).items()}


def set_replay_states(states: Mapping[str, Any], replica: int) -> None:
    """Sets the generators that an eager forward pass draws from, as one replica had them.

    Args:
      states: Result of `replay_states`, perhaps after a round trip through JSON.
      replica: Number of the replica.
    """
    strategy = tf.distribute.get_strategy()
    for name, state in _global_states(strategy, make=states).items():
        if name in states:
            value = np.array(states[name])
            if name == "keras":
                value = value + np.array([replica * STRIDE, 0])
            state.assign(tf.constant(value, state.dtype))


def set_process_states(states: Mapping[str, Any], strategy: tf.distribute.Strategy) -> None:
    """Sets the states of the global generators.

    Args:
      strategy: The strategy that forward passes run under.
      states: Result of `process_states`, perhaps after a round trip through JSON.
    """
    variables = states["variables"]
    # Making Keras's generator draws from Python's, whose state is set afterwards.
    for name, state in _global_states(strategy, make=variables).items():
        if name in variables:
            state.assign(tf.constant(variables[name], state.dtype))
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), *rest))
