"""What tfloss needs to know about the random generators of the process and op determinism."""

from collections.abc import Collection
from typing import Any

import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.random import seed_generator
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
    attribute = seed_generator.GLOBAL_SEED_GENERATOR
    if "keras" in make or global_state.get_global_attribute(attribute) is not None:
        found["keras"] = seed_generator.global_seed_generator().state
    return found
