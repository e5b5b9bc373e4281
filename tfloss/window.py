"""The steps since the last log, and what is logged of them. Host code."""

import time
from collections.abc import Callable, Iterator

import numpy as np

from tfloss.engine import Block
from tfloss.stopwatch import Stopwatch, shares


class LogWindow:
    """Gathers blocks of steps until they are logged: as means, or step by step.

    Args:
      every_step: log every step's values, not their mean.
      clock: seconds; injectable for tests.

    Attributes:
      stopwatch: where the time goes; started with the run.
    """

    def __init__(self, every_step: bool, clock: Callable[[], float] = time.monotonic):
        self._every_step = every_step
        self._clock = clock
        self.stopwatch = Stopwatch(clock)
        self.restart()

    def restart(self) -> None:
        """Forgets what it has and starts the clock."""
        self._blocks: list[Block] = []
        self._began = self._clock()
        self._spent = self.stopwatch.seconds()

    def __bool__(self) -> bool:
        return bool(self._blocks)

    def add(self, block: Block) -> None:
        """Takes the values of some more steps; they stay on the device for now."""
        self._blocks.append(block)

    def logs(self, batch_size: int | None) -> Iterator[tuple[int, dict[str, float]]]:
        """`(step, {tag: value})` of what is to be logged, in order; then restarts.

        The last one also has the speed since the last log, and where the time went. Values that
        not every step reports (a summary that is only due now) are means over those that do.
        """
        for block in self._blocks:
            self.stopwatch.waited(float(block.waited))
        rows = [
            (block.first + index + 1, dict(zip(block.names, row.tolist(), strict=True)))
            for block in self._blocks
            for index, row in enumerate(block.rows())
        ]
        seconds = max(self._clock() - self._began, 1e-9)
        step, last = rows[-1]
        if self._every_step:
            yield from rows[:-1]
        else:
            last = {
                tag: float(np.mean([row[tag] for _, row in rows if tag in row])) for tag in last
            }
        speed = {"steps_per_second": len(rows) / seconds}
        if batch_size is not None:
            speed["examples_per_second"] = speed["steps_per_second"] * batch_size
        share = shares(self.stopwatch.seconds(), self._spent)
        split = {"input/wait_fraction": share["input"]}
        split |= {f"time/{kind}_fraction": share[kind] for kind in ("hooks", "checkpoint")}
        yield step, last | speed | split
        self.restart()
