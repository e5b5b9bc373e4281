"""Profiles a few steps in the middle of a run.

    Profile(100, 110)                                  # or Profile.parse("100:110")

Then `tensorboard --logdir runs/digits` with tensorboard-plugin-profile, tab Profile.
"""

import warnings
from pathlib import Path

import tensorflow as tf

from tfloss.hooks.base import Hook
from tfloss.hooks.every import OnSteps


class Profile(Hook):
    """Writes a TensorBoard profile of the updates `start + 1` to `stop`. Host.

    It begins when exactly `start` updates are done and ends when exactly `stop` are. A run
    resumed in between profiles what is left; one that ends earlier closes the profile.

    Args:
      start: at least 0; leave the first steps out, they compile.
      stop: more than `start`.
      logdir: instead of `workdir/train`.

    Raises ValueError for other numbers.
    """

    chief_only = True

    def __init__(self, start: int, stop: int, *, logdir: str | Path | None = None):
        if not 0 <= start < stop:
            raise ValueError(f"Profile({start}, {stop}): it must be that 0 <= start < stop.")
        self.start, self.stop = start, stop
        # No call ends at step 0: a profile from there begins in before_train.
        self.every = OnSteps(start, stop) if start else OnSteps(stop)
        self._logdir = logdir
        self._running = False

    @classmethod
    def parse(cls, text: str) -> "Profile":
        """Profile of "START:STOP", as the flag `--profile=100:110` has it. Raises ValueError."""
        start, colon, stop = text.partition(":")
        if not (colon and start.strip().isdecimal() and stop.strip().isdecimal()):
            raise ValueError(f"--profile={text}: expected START:STOP in steps, such as 100:110.")
        return cls(int(start), int(stop))

    def before_train(self) -> None:
        if self._logdir is None and self.trainer.workdir is None:
            raise ValueError(
                "Profile has nowhere to write: give the Trainer a workdir, or "
                "Profile(..., logdir=...)."
            )
        run = self.trainer.run
        if run.start >= self.stop or run.steps <= self.start:
            warnings.warn(
                f"Profile({self.start}, {self.stop}) has nothing to profile: this run goes from "
                f"step {run.start} to {run.steps}.",
                stacklevel=2,
            )
        elif run.start >= self.start:
            self._begin()

    def after_step(self, step: int) -> None:
        if step == self.start:
            self._begin()
        elif step == self.stop:
            self._end()

    def after_train(self) -> None:
        self._end()

    def _begin(self) -> None:
        # Devices run behind the host: without this the profile has the tail of earlier steps.
        tf.test.experimental.sync_devices()
        logdir = self._logdir or Path(self.trainer.workdir or "") / "train"
        tf.profiler.experimental.start(str(logdir))
        self._running = True

    def _end(self) -> None:
        if self._running:
            self._running = False
            tf.test.experimental.sync_devices()
            tf.profiler.experimental.stop()
