"""Turns on op determinism, and says what to do about ops that have no deterministic kernel."""

import tensorflow as tf

from tfloss import _upstream


def enable_op_determinism(seed: int | None) -> None:
    """Turns on TensorFlow's op determinism for the rest of the process. Runs on the host.

    Call it before data sets and models are made. Data sets then ignore `deterministic=False`, and
    run functions with stateful ops one at a time. Some ops have no deterministic kernel on a GPU
    and raise `tf.errors.UnimplementedError`.

    Args:
      seed: Global seed. TensorFlow's random ops need one when op determinism is on.

    Raises:
      ValueError: The seed is None.
    """
    if seed is None:
        raise ValueError("deterministic=True needs a seed. Pass one, such as seed=0.")
    tf.config.experimental.enable_op_determinism()


def add_determinism_advice(error: tf.errors.OpError) -> None:
    """Adds a note on what to do to the error of an op without a deterministic kernel.

    Runs on the host.

    Args:
      error: Error raised by a step. Errors with another cause are left as they are.
    """
    if _upstream.caused_by_missing_deterministic_kernel(error):
        error.add_note(
            "tfloss: with deterministic=True, TensorFlow rejects ops that have no deterministic "
            "kernel for this device. Use another op, place it on the CPU, or train without "
            "deterministic=True."
        )
