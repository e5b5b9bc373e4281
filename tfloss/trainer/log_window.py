"""The steps since the last log, and what is logged of them. Host code."""

import dataclasses
import io
import itertools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tfloss.engine.engine import StepLogs
from tfloss.trainer.stopwatch import Stopwatch


class LogWindow:
    """Gathers blocks of steps until they are logged: as means, or step by step.

    Args:
      log_every: steps between logs, which are of the steps up to its multiples.
      log_every_step: log every step's values, not their mean.
      clock: seconds; injectable for tests.

    Attributes:
      stopwatch: where the time goes; started with the run.
    """

    def __init__(
        self, log_every: int, log_every_step: bool, clock: Callable[[], float] = time.monotonic
    ):
        self._log_every, self._every_step = log_every, log_every_step
        self._clock = clock
        self.stopwatch = Stopwatch(clock)
        self.restart()

    def restart(self) -> None:
        """Forgets what it has and starts the clock."""
        self._blocks: list[StepLogs] = []
        self._earlier = 0  # steps before the clock started
        self._began = self._clock()
        self._spent = self.stopwatch.seconds()

    def __bool__(self) -> bool:
        return bool(self._blocks)

    def add(self, block: StepLogs) -> None:
        """Takes the values of some more steps; they stay on the device for now."""
        while (room := self._log_every - block.first % self._log_every) < block.steps:
            self._blocks.append(dataclasses.replace(block, values=block.values[:room]))
            first = block.first + room
            block = dataclasses.replace(block, first=first, values=block.values[room:], waited=0.0)
        self._blocks.append(block)

    def saved(self) -> bytes:
        """The steps that are not logged yet, for a checkpoint."""
        heads = [{"first": one.first, "names": one.names} for one in self._blocks]
        arrays: dict[str, Any] = {str(i): one.rows() for i, one in enumerate(self._blocks)}
        file = io.BytesIO()
        np.savez(file, **arrays, heads=np.array(json.dumps(heads)))
        return file.getvalue()

    def restore(self, saved: bytes) -> None:
        """Takes what was `saved`."""
        self.restart()
        with np.load(io.BytesIO(saved)) as arrays:
            for index, head in enumerate(json.loads(str(arrays["heads"]))):
                self.add(StepLogs(head["first"], tuple(head["names"]), arrays[str(index)]))

    def go_on(self, step: int) -> None:
        """Starts the clock. What is not logged yet stays, if it is of the steps before `step`."""
        blocks = self._blocks
        self.restart()
        if blocks and blocks[-1].first + blocks[-1].steps == step:
            self._keep(blocks)

    def logs(
        self, batch_size: int | None, *, complete: bool = False
    ) -> Iterator[tuple[int, dict[str, float]]]:
        """`(step, {tag: value})` of what is to be logged, in order; then restarts.

        The last one of each log also has the speed since the last restart, and where the time
        went. Values that not every step reports (a summary that is only due now) are means over
        those that do.

        Args:
          batch_size: global examples a step, or None.
          complete: leave steps after the last multiple of `log_every` for later.
        """
        every = self._log_every
        found = [dataclasses.replace(block, values=block.rows()) for block in self._blocks]
        for block in found:
            self.stopwatch.waited(float(block.waited))
        logs = [list(x) for _, x in itertools.groupby(found, lambda one: one.first // every)]
        rest = []
        if complete and (logs[-1][-1].first + logs[-1][-1].steps) % every:
            rest = logs.pop()
        speed = self._speed(sum(block.steps for block in found), batch_size)
        for blocks in logs:
            step, last = blocks[-1].first + blocks[-1].steps, _means(blocks)
            for block in blocks if self._every_step else ():
                for number, row in enumerate(block.values.tolist(), block.first + 1):
                    last = dict(zip(block.names, row, strict=True))
                    if number < step:
                        yield number, last
            yield step, last | speed
        self.restart()
        self._keep(rest)

    def _keep(self, blocks: list[StepLogs]) -> None:
        """Of steps whose time is accounted for."""
        self._blocks = [dataclasses.replace(block, waited=0.0) for block in blocks]
        self._earlier = sum(block.steps for block in blocks)

    def _speed(self, steps: int, batch_size: int | None) -> dict[str, float]:
        seconds = max(self._clock() - self._began, 1e-9)
        found = {"steps_per_second": (steps - self._earlier) / seconds}
        if batch_size is not None:
            found["examples_per_second"] = found["steps_per_second"] * batch_size
        share = self.stopwatch.fractions(self._spent)
        found["input/wait_fraction"] = share["input"]
        return found | {f"time/{kind}_fraction": share[kind] for kind in ("hooks", "checkpoint")}


def _means(blocks: list[StepLogs]) -> dict[str, float]:
    """Of what the last block reports, in double precision. Their values are on the host.

    However the steps were cut into blocks, the same values are summed in the same order.
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
    return {name: value / counts[name] for name, value in sums.items()}
