"""Profiles a few steps of a run.

    Profile(100, 110)                                  # or Profile.parse("100:110")

View it with `tensorboard --logdir runs/digits` and tensorboard-plugin-profile, tab Profile.
"""

import warnings
from pathlib import Path

import tensorflow as tf

from tfloss.common.reading import check_directory
from tfloss.hooks.base import Hook
from tfloss.hooks.every import OnSteps
from tfloss.hooks.write_errors import WriteErrors


class Profile(Hook, own=True):
    """Writes a TensorBoard profile of the updates `start + 1` to `stop`. Host.

    The profile starts when exactly `start` updates are done, and ends when exactly `stop` are. A
    run that resumes in between profiles the remaining steps. A run that ends earlier ends the
    profile.

    Args:
      start: Number of updates before the profile, at least 0. The first steps compile, so skip
        them.
      stop: Number of updates at the end of the profile, more than `start`.
      logdir: Directory of the profile, instead of `workdir/train`.

    Raises:
      ValueError: `start` or `stop` is out of its range.
    """

    chief_only = True

    def __init__(self, start: int, stop: int, *, logdir: str | Path | None = None):
        if not 0 <= start < stop:
            raise ValueError(f"Profile({start}, {stop}): 0 <= start < stop must hold.")
        self.start, self.stop = start, stop
        # No call ends at step 0. A profile from there starts in before_train.
        self.every = OnSteps(start, stop) if start else OnSteps(stop)
        self._logdir = logdir
        self._running = False
        self._errors = WriteErrors(self, "The profile", "There is no profile.")

    @classmethod
    def parse(cls, text: str) -> "Profile":
        """Makes the hook from the value of a flag such as `--profile=100:110`.

        Args:
          text: "START:STOP", in steps.

        Returns:
          The hook.

        Raises:
          ValueError: The text has another form.
        """
        start, colon, stop = text.partition(":")
        if not (colon and start.strip().isdecimal() and stop.strip().isdecimal()):
            raise ValueError(f"--profile={text}: expected START:STOP in steps, such as 100:110.")
        return cls(int(start), int(stop))

    def before_train(self) -> None:
        """Starts the profile if the run starts inside of it, and warns if the run misses it.

        Raises:
          ValueError: There is neither a logdir nor a workdir.
          WorkdirError: The directory can't be written to.
        """
        if self._logdir is None and self.trainer.workdir is None:
            raise ValueError(
                "Profile has no directory to write to. Give the Trainer a workdir, or use "
                "Profile(..., logdir=...)."
            )
        check_directory(self._directory())
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
        """Starts or ends the profile."""
        if step == self.start:
            self._begin()
        elif step == self.stop:
            self._end()

    def after_train(self) -> None:
        """Ends the profile if it is still running."""
        self._end()

    def _begin(self) -> None:
        # Devices run behind the host. Without this the profile includes the end of earlier steps.
        tf.test.experimental.sync_devices()
        tf.profiler.experimental.start(str(self._directory()))
        self._running = True

    def _directory(self) -> Path:
        return Path(self._logdir or Path(self.trainer.workdir or "") / "train")

    def _end(self) -> None:
        if self._running:
            self._running = False
            tf.test.experimental.sync_devices()
            self._errors.survive(tf.profiler.experimental.stop)
