"""What tfloss needs to know about the contexts of `tf.distribute`."""

# This package is the place for private attributes.
# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false

import contextlib
from collections.abc import Callable, Generator
from typing import Any

from tensorflow.python.distribute import distribute_lib

from tfloss._upstream.patching import replaced


@contextlib.contextmanager
def intercept_reductions(observe: Callable[[Any], None]) -> Generator[None]:
    """Passes what replicas reduce or gather in a forward pass to `observe(result)`.

    The methods are public; replacing them on the class is not documented. A graph doesn't tell
    these results from others: the ops depend on the strategy.

    Args:
      observe: Is given each result of `ReplicaContext.all_reduce` and `all_gather`.

    Yields:
      None.
    """

    def make(original: Any) -> Any:
        def reduce(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(self, *args, **kwargs)
            observe(result)
            return result

        return reduce

    context = distribute_lib.ReplicaContext
    with replaced(context, "all_reduce", make), replaced(context, "all_gather", make):
        yield


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
