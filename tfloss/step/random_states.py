"""Random states: a model's Keras seed generators, each replica's its own; and the process's.

Keras keeps the state of a seed generator (Dropout's, ...) in one mirrored variable, so all
replicas draw the same masks. Here replica r's state is replica 0's plus r * STRIDE. So a
checkpoint needs replica 0's only; resumed on as many replicas a run goes on exactly, and on
another number it is a run with other noise whose first replica goes on as before. Host code,
cross-replica.
"""

import random
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfloss import _upstream

STRIDE = 1_000_003


def set_seed(model: keras.Model, seed: int) -> None:
    """Gives every seed generator a state that follows from `seed`, the same on all replicas."""
    states = [state for _, state in _upstream.seed_states(model)]
    numbers = np.random.SeedSequence(seed).generate_state(max(len(states), 1))
    for state, number in zip(states, numbers, strict=False):
        state.assign(np.array([int(number) % 2**30, 0], dtype=state.dtype))


def split_seeds(model: keras.Model, strategy: tf.distribute.Strategy) -> None:
    """Gives every replica a state of its own, that of the first one and a multiple of STRIDE."""
    states = [state.value for _, state in _upstream.seed_states(model)]
    if strategy.num_replicas_in_sync == 1 or not states:
        return

    def replica():
        context = tf.distribute.get_replica_context()
        index = int(tf.get_static_value(context.replica_id_in_sync_group))
        mine = tf.stack([tf.cast(state, tf.int64) for state in states])
        # The first replica may be another worker's, so all of them ask it.
        first = context.all_reduce(tf.distribute.ReduceOp.SUM, mine if index == 0 else mine * 0)
        for state, value in zip(states, tf.unstack(first), strict=True):
            state.assign(
                tf.cast(value, state.dtype) + tf.constant([STRIDE * index, 0], state.dtype)
            )

    # As a function, since strategies warn of what they run eagerly.
    tf.function(lambda: strategy.run(replica), autograph=False)()


def process_variables() -> list[Any]:
    """The states of TensorFlow's and Keras's global generators, as far as there are some."""
    return list(_upstream.global_generators().values())


def process_states() -> dict[str, Any]:
    """The states of the global generators of Python, NumPy, TensorFlow and Keras, as JSON."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "variables": {
            name: np.asarray(state).tolist()
            for name, state in _upstream.global_generators().items()
        },
    }


def set_process_states(states: Mapping[str, Any]) -> None:
    """Sets what `process_states` gave."""
    variables = states["variables"]
    # To make Keras's draws from Python's.
    for name, state in _upstream.global_generators(make=variables).items():
        if name in variables:
            state.assign(tf.constant(variables[name], state.dtype))
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), *rest))
