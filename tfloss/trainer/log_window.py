"""The steps since the last log, and the values that are logged for them. Host code."""

import dataclasses
import io
import itertools
import json
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tfloss.engine.engine import StepLogs
from tfloss.forward.streaming_means import divided
from tfloss.trainer.running_means import RunningMeans
from tfloss.trainer.stopwatch import Stopwatch


class LogWindow:
    """Gathers the logs of steps until they are due: as means, or step by step.

    Args:
      log_every: Steps between logs. A log covers the steps up to a multiple of it.
      log_every_step: Whether every step's values are logged, and not their means.
      clock: A function that returns the time in seconds; injectable for tests.

    Attributes:
      stopwatch: Where the time goes; started with the run.
    """

    def __init__(
        self, log_every: int, log_every_step: bool, clock: Callable[[], float] = time.monotonic
    ):
        self._log_every, self._every_step = log_every, log_every_step
        self._clock = clock
        self.stopwatch = Stopwatch(clock)
        self._means: weakref.WeakSet[RunningMeans] = weakref.WeakSet()
        self.restart()

    def restart(self) -> None:
        """Drops all steps and starts the clock."""
        self._blocks: list[StepLogs] = []
        self._earlier = 0  # steps before the clock started
        self._began = self._clock()
        self._spent = self.stopwatch.seconds()

    def __bool__(self) -> bool:
        """Whether there are steps that are not logged yet."""
        return bool(self._blocks)

    def pending(self, step: int) -> dict[int, frozenset[str]]:
        """Returns `{step: names}` of the values that `start(step)` keeps for the next log."""
        if not self._ends_at(step):
            return {}
        return {
            number: frozenset(block.names)
            for block in self._blocks
            for number in range(block.first + 1, block.first + block.steps + 1)
        }

    def running_means(self) -> RunningMeans:
        """Returns means that get the values of all later steps, as long as somebody has them."""
        means = RunningMeans(lambda: self._blocks)
        self._means.add(means)
        return means

    def add(self, block: StepLogs) -> None:
        """Adds the values of some more steps; they stay on the device for now."""
        while (left := self._log_every - block.first % self._log_every) < block.steps:
            self._blocks.append(dataclasses.replace(block, values=block.values[:left]))
            first = block.first + left
            block = dataclasses.replace(block, first=first, values=block.values[left:], waited=0.0)
        self._blocks.append(block)

    def saved(self) -> bytes:
        """Returns the steps that are not logged yet, for a checkpoint."""
        heads = [{"first": one.first, "names": one.names} for one in self._blocks]
        arrays: dict[str, Any] = {str(i): one.rows() for i, one in enumerate(self._blocks)}
        file = io.BytesIO()
        np.savez(file, **arrays, heads=np.array(json.dumps(heads)))
        return file.getvalue()

    def restore(self, saved: bytes) -> None:
        """Restores what `saved` returned."""
        self.restart()
        with np.load(io.BytesIO(saved)) as arrays:
            for index, head in enumerate(json.loads(str(arrays["heads"]))):
                self.add(StepLogs(head["first"], tuple(head["names"]), arrays[str(index)]))

    def start(self, step: int) -> None:
        """Starts the clock, at `step` completed updates.

        Steps that are not logged yet stay if they end at `step`.
        """
        blocks = self._blocks if self._ends_at(step) else []
        self.restart()
        self._keep(blocks)

    def logs(
        self, batch_size: int | None, *, complete: bool = False
    ) -> Iterator[tuple[int, dict[str, float]]]:
        """Returns what is to be logged, in order, and restarts.

        The last entry of each log also has the speed since the last restart, and where the time
        went. A value that not every step reports, such as a summary that is only due now, is the
        mean over the steps that report it.

        Args:
          batch_size: Global examples in a step, or None.
          complete: Whether steps after the last multiple of `log_every` are left for later.

        Yields:
          `(step, {tag: value})`.
        """
        every = self._log_every
        found = [dataclasses.replace(block, values=block.rows()) for block in self._blocks]
        for block in found:
            self.stopwatch.waited(float(block.waited))
            for means in self._means:
                means.add(block)
        logs = [list(x) for _, x in itertools.groupby(found, lambda one: one.first // every)]
        rest: list[StepLogs] = []
        if complete and (logs[-1][-1].first + logs[-1][-1].steps) % every:
            rest = logs.pop()
        speed = self._speed(sum(block.steps for block in found), batch_size)
        for blocks in logs:
            step, last = blocks[-1].first + blocks[-1].steps, _means(blocks)
            for block in blocks if self._every_step else ():
                for number, row in enumerate(block.values.tolist(), block.first + 1):
                    columns = dict(zip(block.names, row, strict=True))
                    last = divided(columns, columns)
                    if number < step:
                        yield number, last
            yield step, last | speed
        self.restart()
        self._keep(rest)

    def _ends_at(self, step: int) -> bool:
        """Whether there are steps that are not logged yet, and `step` is the last of them."""
        return bool(self._blocks) and self._blocks[-1].first + self._blocks[-1].steps == step

    def _keep(self, blocks: list[StepLogs]) -> None:
        """Keeps steps whose time has been counted."""
        self._blocks = [dataclasses.replace(block, waited=0.0) for block in blocks]
        self._earlier = sum(block.steps for block in blocks)

    def _speed(self, steps: int, batch_size: int | None) -> dict[str, float]:
        """The speed since the last restart, and the fractions of the time."""
        seconds = max(self._clock() - self._began, 1e-9)
        found = {"steps_per_second": (steps - self._earlier) / seconds}
        if batch_size is not None:
            found["examples_per_second"] = found["steps_per_second"] * batch_size
        fractions = self.stopwatch.fractions(self._spent)
        found["input/wait_fraction"] = fractions["input"]
        return found | {
            f"time/{kind}_fraction": fractions[kind] for kind in ("hooks", "checkpoint")
        }


def _means(blocks: list[StepLogs]) -> dict[str, float]:
    """The mean of each value that the last steps report, in double precision.

    The same values are summed in the same order, however the steps were split into calls.
    """
    reports: dict[tuple[str, ...], list[np.ndarray]] = {}
    for block in blocks:
        reports.setdefault(block.names, []).append(block.values)
    sums: dict[str, float] = dict.fromkeys(blocks[-1].names, 0.0)
    counts = dict.fromkeys(sums, 0)
    for names, parts in reports.items():
        values = np.concatenate(parts)
        summed = values.sum(0, dtype=np.float64).tolist()
        for name, value in zip(names, summed, strict=True):
            if name in sums:
                sums[name] += value
                counts[name] += len(values)
    return divided(sums, {name: value / counts[name] for name, value in sums.items()})
