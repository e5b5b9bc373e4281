"""The loop of `Trainer.train`: calls of many steps, cut where a hook is due. Host code.

Between two calls the workers, if there are several, settle what depends on their clocks and on
signals, so that all of them make the same calls (`tfloss.distribute.agreement`).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import tensorflow as tf

from tfloss.data.feed import Feed
from tfloss.engine.engine import StepLogs
from tfloss.engine.mode_runner import ModeRunner
from tfloss.errors import Preempted
from tfloss.hooks.base import Hook
from tfloss.summary import Summary
from tfloss.trainer.result import last_losses
from tfloss.trainer.signals import caught

if TYPE_CHECKING:
    from tfloss.trainer.trainer import Trainer

_CALL_SECONDS = 1.0  # of a long call; so long Ctrl-C and clocks may have to wait
_MOST_STEPS = 1000
# More than that of waiting for data is told.
_WAITED_SHARE, _WAITED_SECONDS = 0.2, 5.0


class Loop:
    """One call of `Trainer.train`, from its first step to its last.

    Args:
      trainer: whose hooks are called, and whose `step` is moved on.
      modes: runs the steps.
      feed: the data.
      steps_per_call: the most steps in a call, or "auto": by the time they take.

    Attributes:
      ends: what is to be raised when all is done, if a signal came at the last step.
    """

    def __init__(
        self, trainer: "Trainer", modes: ModeRunner, feed: Feed, steps_per_call: int | str
    ):
        self._trainer, self._modes, self._feed = trainer, modes, feed
        self._warmed: dict[str, float] | None = None  # the stopwatch at the first log
        self._warned = False
        self._logs_may_wait = all(
            hook.async_logs or type(hook).on_log is Hook.on_log for hook in trainer.hooks
        )
        self.ends: BaseException | None = None
        self._fixed = None if steps_per_call == "auto" else int(steps_per_call)

    def run(self, steps: int) -> dict[str, float]:
        """Runs until `steps` are done or somebody stops it. Returns the last step's losses.

        Raises:
          Preempted: after SIGTERM, if there is a workdir to save in.
          KeyboardInterrupt: after Ctrl-C, when the step and the hooks that are due are done; of
            several workers after the same step on all.
          Aborted: after a second Ctrl-C, at once.
        """
        trainer = self._trainer
        signals = ["SIGTERM"] * (trainer.checkpoints is not None) + ["SIGINT"]
        trainer.stopwatch.start()
        trainer.window.go_on(trainer.step)
        block, most = None, self._fixed or self._modes.most
        with caught(*signals, first=self._answer) as came:
            stopped = trainer.stopped is not None  # by a hook, before the first step
            while trainer.step < steps and not stopped:
                count, recording, log_at = self._next_call(steps, most)
                began = trainer.clock()
                block = self._call(count, recording)
                took = trainer.clock() - began
                if self._fixed is None:
                    most = next_most(most, block.steps, took)
                trainer.step += block.steps
                self._feed.reached(trainer.step)
                trainer.window.add(block)
                if trainer.step >= log_at:
                    self._log(block.summaries, whole=trainer.step < steps)
                self._call_hooks()
                self._feed.keep()  # may meet an error of the data; this block is logged by now
                wishes = [trainer.stopped is not None, "SIGTERM" in came, "SIGINT" in came]
                wishes, (most,) = trainer.agreement.agree(wishes, [most])
                most = self._modes.most = int(most)
                stopped, terminate, interrupt = wishes
                if stopped and trainer.stopped is None:
                    trainer.stop("another worker stopped")
                if terminate:
                    trainer.logger.info(
                        f"SIGTERM at step {trainer.step}: saving a checkpoint, then ending with "
                        f"exit code {Preempted.CODE}. The same command goes on from there."
                    )
                    self.ends = Preempted()
                elif interrupt:
                    self.ends = KeyboardInterrupt()
                if self.ends is not None and trainer.step < steps:
                    raise self.ends
        if trainer.window:  # stopped between two logs
            self._log(())
        return last_losses(block)

    def _answer(self, signal: str) -> None:
        """Says at once what the first Ctrl-C does. In another thread."""
        if signal == "SIGINT":
            trainer = self._trainer
            save = "" if trainer.checkpoints is None else ", then saving a checkpoint"
            trainer.logger.info(
                f"Ctrl-C at step {trainer.step}: finishing the step and what is due{save}; "
                "Ctrl-C again exits at once."
            )

    def _next_call(self, steps: int, most: int) -> tuple[int, bool, int]:
        """How many steps, whether it is the one that is logged, and which step is next logged."""
        step, every = self._trainer.step, self._trainer.log_every
        log_at = min(steps, (step // every + 1) * every)
        due = [h.every.next_step(step) for h in self._trainer.hooks if h.every is not None]
        stop_at = min([steps, *(s for s in due if s is not None)])
        records, waits = self._modes.records, self._modes.looping and self._logs_may_wait
        if records or not waits:
            stop_at = min(stop_at, log_at)
        if not records:
            return min(stop_at - step, most), False, log_at
        # The step that is logged is a call of its own: it also returns the summaries.
        recording = step + 1 == log_at
        return (1 if recording else min(stop_at - step, log_at - 1 - step, most)), recording, log_at

    def _call(self, count: int, recording: bool) -> StepLogs:
        trainer, feed = self._trainer, self._feed
        try:
            block = self._modes.run(count, recording)
        except (tf.errors.OutOfRangeError, StopIteration):
            trainer.step = int(trainer.train_step.counter.numpy())
            feed.reached(trainer.step)
            done = (trainer.step - trainer.run.start) * trainer.train_step.accumulate
            feed.after_end(done, trainer.step, trainer.run.steps)
            return self._call(count, recording)
        except tf.errors.OpError as error:
            if feed.failed(error):
                trainer.step = int(trainer.train_step.counter.numpy())
                feed.reached(trainer.step)
                feed.after_error()
            raise
        feed.after_call(trainer.agreement)
        return block

    def _call_hooks(self) -> None:
        """Those that are due; by the first worker's clock, where that decides.

        Checkpoints are saved last: what others do at this step is in them, or would be lost.
        """
        trainer = self._trainer
        timed = [hook for hook in trainer.hooks if hook.every is not None]
        timed.sort(key=lambda hook: hook.time_bucket == "checkpoint")  # the rest keeps its order
        due = [float(hook.every.due(trainer.step)) for hook in timed if hook.every is not None]
        ends: Preempted | None = None
        for hook, now in zip(timed, trainer.agreement.agree([], due)[1], strict=True):
            if now and trainer.runs(hook):
                try:
                    with trainer.stopwatch.during(hook.time_bucket):
                        hook.after_step(trainer.step)
                except Preempted as error:  # raised when all have had their turn at this step
                    ends = error
        if ends is not None:
            raise ends

    def _log(self, summaries: Sequence[Summary], *, whole: bool = False) -> None:
        """Logs the steps since the last log; summaries belong to the last of them.

        With `whole`, those after the last multiple of `log_every` are left for later.
        """
        trainer = self._trainer
        *before, (step, scalars) = trainer.window.logs(trainer.run.batch_size, whole=whole)
        trainer.log_steps(before)
        trainer.log(step, scalars, summaries)
        self._warn_of_slow_input()

    def _warn_of_slow_input(self) -> None:
        """Once a run, if it is data that training waits for. Not of the first steps."""
        now = self._trainer.stopwatch.seconds()
        if self._warmed is None:
            self._warmed = now
            return
        share = self._trainer.stopwatch.fractions(self._warmed)["input"]
        waited = now["input"] - self._warmed["input"]
        if not self._warned and waited > _WAITED_SECONDS and share > _WAITED_SHARE:
            self._warned = True
            self._trainer.logger.info(
                f"{share:.0%} of the time goes into waiting for data ({waited:.0f} s so far; "
                "logged as input/wait_fraction). Look at the input pipeline: "
                ".map(..., num_parallel_calls=tf.data.AUTOTUNE), .cache() what fits into memory, "
                ".prefetch(2) at the end, decode and augment after .shuffle()."
            )


def next_most(most: int, steps: int, seconds: float) -> int:
    """The most steps for the next call, after one of so many steps in so many seconds.

    They get more by and by, and fewer at once. A call that was cut short tells nothing, unless
    it was far too long.
    """
    if steps < most and seconds < 2 * _CALL_SECONDS:
        return most
    fitting = int(_CALL_SECONDS * steps / max(seconds, 1e-9))
    return max(1, min(fitting, 2 * most, _MOST_STEPS))
