"""What the engine takes its batches from: the run's iterator, or a stacker of its batches. Host.

This is the only place where the iterator passes from one mode of the engine to another. The mode
"loop" trains on blocks of stacked batches: a `BatchStacker` takes the iterator over. The other
modes take single batches from the stacker as long as it holds some; else they use the iterator. So
no batch is taken twice or left out when the mode changes.
"""

import contextlib
from collections.abc import Callable
from typing import Any

from tfloss.data.stacked_batches import BatchStacker, raised_by_data


class EngineInput:
    """One iterator, and the stacker that has taken it over, if there is one.

    Args:
      new_stacker: A function that stacks the batches of an iterator from its position on.

    Attributes:
      iterator: The iterator, at the next batch if no stacker reads ahead.
      stacker: The stacker, or None.
    """

    def __init__(self, new_stacker: Callable[[Any], BatchStacker]):
        self._new_stacker = new_stacker
        self.iterator: Any = None
        self.stacker: BatchStacker | None = None

    def open(self, iterator: Any) -> None:
        """Continues with another iterator. What is pending of the old one is dropped."""
        self.iterator, self.stacker = iterator, None

    def source(self, mode: str, *, read_ahead: bool = False) -> Any:
        """Returns what the engine takes its batches from in a mode.

        Args:
          mode: "graph", "step" or "loop".
          read_ahead: Whether the mode "loop" is settled, or may be, so that whole blocks are read
            ahead. Another mode ends that.

        Returns:
          An iterator or a `BatchStacker`.
        """
        if mode == "loop":
            if self.stacker is None:
                self.stacker = self._new_stacker(self.iterator)
            self.stacker.reads_ahead |= read_ahead
            return self.stacker
        if self.stacker is None:
            return self.iterator
        self.stacker.stop_reading_ahead()
        return self.stacker if self.stacker.has_pending() else self.iterator

    @property
    def reads_ahead(self) -> bool:
        """Whether the iterator may be ahead of what the engine has taken."""
        return self.stacker is not None and self.stacker.reads_ahead

    def paused(self) -> contextlib.AbstractContextManager[int | None]:
        """Inside the `with` nothing is read ahead.

        Returns:
          A context manager that gives the number of batches by which the iterator is ahead, or None
          if it is behind an error that is still to be raised.
        """
        return contextlib.nullcontext(0) if self.stacker is None else self.stacker.paused()

    def drop_step(self) -> None:
        """Drops the pending batches of a step that met an error in the data."""
        if self.stacker is not None:
            self.stacker.drop_step()

    def failed(self, error: Exception) -> bool:
        """Whether an error was raised by the data, rather than by the step that took them."""
        sources = (self.iterator, self.stacker)
        return any(raised_by_data(one, error) for one in sources if one is not None)
