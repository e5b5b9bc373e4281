"""Explains where the replicas can't be synchronised. Replica code, traced."""

import contextlib
from collections.abc import Generator

from tfloss import _upstream
from tfloss.errors import LossError
from tfloss.inspect.source_lines import error_line


def nested_call_error(what: str) -> LossError:
    """Returns the error for a synchronisation in a nested graph.

    Args:
      what: What synchronises the replicas.
    """
    return LossError(
        f"{what} is called inside a loop, a branch or a nested tf.function, where the replicas "
        "can't be synchronised. Call it outside of them. If it already is, train with jit=False "
        "on several replicas."
    )


@contextlib.contextmanager
def synchronisation_explained(what: str = "") -> Generator[None]:
    """Explains why replicas can't be synchronised inside a nested or compiled function.

    Args:
      what: What synchronises the replicas. By default, the line of the user's code is named.

    Yields:
      None.

    Raises:
      LossError: The code inside synchronises the replicas where this is not possible.
    """
    try:
        yield
    except RuntimeError as error:
        if not _upstream.caused_by_merge_call(error):
            raise
        unnamed = (
            "A synchronisation of the replicas (all_reduce, an assignment that is averaged, "
            f"synchronized BatchNormalization) at {error_line(error)}"
        )
        raise nested_call_error(what or unnamed) from None
