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
