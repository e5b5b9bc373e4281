"""Reads an iterator batch by batch, again where it failed while being read ahead. Host code."""

from typing import Any


class BatchIterator:
    """Reads an iterator batch by batch, and raises an expected error in its place.

    Attributes:
      iterator: Iterator that is read.
    """

    def __init__(self, iterator: Any):
        """Starts where the iterator is."""
        self.iterator = iterator
        self._due: Exception | None = None  # to be raised by the next call
        self._awaited: Exception | None = None  # to be raised where it occurs again
        self._batches_left = 0

    def next(self) -> Any:
        """Returns the next batch.

        Raises:
          StopIteration: The data ended.
          Exception: Whatever the iterator raised, or the error that is pending.
        """
        if self._due is not None:
            error, self._due = self._due, None
            raise error
        try:
            batch = next(self.iterator)
        except Exception as error:
            awaited, self._awaited = self._awaited, None
            if isinstance(error, StopIteration) and awaited is not None:
                raise awaited from None
            raise
        self._batches_left -= 1
        if self._awaited is not None and self._batches_left == 0:
            self._due, self._awaited = self._awaited, None
        return batch

    def postpone(self, error: Exception) -> None:
        """Raises an error in the next call of `next` instead of now."""
        self._due = error

    def read_again(self, iterator: Any, error: Exception, most: int) -> None:
        """Continues from an iterator that was moved back to before an error.

        The error is raised in any case, even if it doesn't occur again: at the end of the data, or
        after the last batch that it can have occurred at.

        Args:
          iterator: Iterator to continue from.
          error: The error.
          most: Upper bound on the number of batches before the error.
        """
        self.iterator, self._awaited, self._batches_left = iterator, error, most

    @property
    def error_pending(self) -> bool:
        """Whether an error is still to be raised."""
        return self._due is not None or self._awaited is not None
