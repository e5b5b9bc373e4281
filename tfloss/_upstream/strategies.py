"""What tfloss needs to know about the contexts of `tf.distribute`."""

# This package is the place for private attributes.
# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false

import contextlib
from collections.abc import Generator
from typing import Any

from tensorflow.python.distribute import distribute_lib


@contextlib.contextmanager
def as_single_replica() -> Generator[None]:
    """Makes this thread the only replica, as it is outside of all strategies.

    Code inside is replica code: `tf.distribute.get_replica_context()` is that of the default
    strategy, and a mirrored variable acts as that of the first replica. Inside of a strategy's
    scope nothing public leads there: `strategy.run` starts a thread for each replica.

    Yields:
      None.
    """
    library: Any = distribute_lib
    library._push_per_thread_mode(library._get_default_replica_mode())
    try:
        yield
    finally:
        library._pop_per_thread_mode()


@contextlib.contextmanager
def without_partial_batches(strategy: Any) -> Generator[None]:
    """Data that are distributed inside end on each worker by themselves.

    TensorFlow asks all workers at each step whether any has a batch left, and gives empty batches
    to those whose data have ended. So data that end early on one worker are not noticed. The
    attribute is one that TensorFlow looks for; its own strategies don't set it.

    Args:
      strategy: A strategy of several workers.

    Yields:
      None.
    """
    extended: Any = strategy.extended
    extended.enable_partial_batch_handling = False
    try:
        yield
    finally:
        del extended.enable_partial_batch_handling
