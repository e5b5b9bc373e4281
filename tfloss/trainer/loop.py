"""The loop of `Trainer.train`: calls of many steps, cut where a hook is due. Host code.

Between two calls the workers, if there are several, decide together what depends on their clocks
and on signals, so that all of them make the same calls (`tfloss.distribute.agreement`).
"""

import dataclasses
from collections.abc import Callable, Sequence

import tensorflow as tf

from tfloss.data.batch_division import data_error
from tfloss.data.feed import Feed
from tfloss.engine.engine import StepLogs
from tfloss.engine.mode_runner import ModeRunner
from tfloss.engine.step_traces import SILENT, Kind
from tfloss.errors import Preempted, WorkdirError, WorkdirInUseError, WorkerError
from tfloss.hooks.run_headline import show_headline
from tfloss.hooks.watch import watch_of
from tfloss.step.watched import WatchRequest
from tfloss.summary import Summary
from tfloss.trainer.hook_list import HookList
from tfloss.trainer.result import last_losses
from tfloss.trainer.run_state import RunState
from tfloss.trainer.signals import caught

_CALL_SECONDS = 1.0  # of a long call; Ctrl-C and clocks may have to wait that long
_MAX_STEPS = 1000
# A slow input pipeline is reported from this fraction of the time and these seconds on.
_WAIT_FRACTION, _WAIT_SECONDS = 0.2, 5.0
_FASTER_PIPELINE = (
    "Speed up the input pipeline: .map(..., num_parallel_calls=tf.data.AUTOTUNE), .cache() what "
    "fits into memory, .prefetch(2) at the end, decode and augment after .shuffle()."
)
_FASTER_SOURCE = (
    "Do less in map, batch_map and __getitem__: compute with TensorFlow instead of Python, in "
    "batch_map instead of map, or prepare the examples once, before training."
)


@dataclasses.dataclass(frozen=True)
class _Call:
    """A planned call.

    Attributes:
      count: The most steps to run.
      log_at: The next logged step.
      recording: Whether summaries are recorded.
      watch: What is watched, or None.
    """

    count: int
    log_at: int
    recording: bool = False
    watch: WatchRequest | None = None


class Loop:
    """One call of `Trainer.train`, from its first step to its last.

    Args:
      run: The state of the run, which the loop moves on.
      hooks: The hooks to call.
      modes: Runs the steps.
      feed: The data.
      steps_per_call: The most steps in a call, or "auto": as many as take about a second.
      saves: Whether there is a place to save checkpoints, so that SIGTERM is worth catching.
      on_first_step: Called once, when the first call of steps is completed.

    Attributes:
      ending: The exception to raise when all is done, if a signal came at the last step.
    """

    def __init__(
        self,
        run: RunState,
        hooks: HookList,
        modes: ModeRunner,
        feed: Feed,
        *,
        steps_per_call: int | str,
        saves: bool,
        on_first_step: Callable[[], object] = lambda: None,
    ):
        self._run, self._hooks, self._modes, self._feed = run, hooks, modes, feed
        self._saves, self._on_first_step = saves, on_first_step
        self._fixed = None if steps_per_call == "auto" else int(steps_per_call)
        self._async_logs, self._watch = hooks.async_logs, watch_of(hooks)
        self._warm: dict[str, float] | None = None  # the stopwatch at the first log
        self._warned = False
        self.ending: BaseException | None = None

    def run(self, steps: int) -> dict[str, float]:
        """Runs until `steps` updates are completed or somebody stops the run.

        Args:
          steps: The step to reach.

        Returns:
          `{name: value}` of the last step's losses.

        Raises:
          Preempted: SIGTERM came, and there is a workdir to save in.
          WorkdirError, WorkdirInUseError: The workdir was renamed, deleted, replaced or taken over.
          KeyboardInterrupt: Ctrl-C came. The step and the hooks that are due are done; several
            workers end after the same step.
          Aborted: A second Ctrl-C came.
        """
        run = self._run
        signals = ["SIGTERM"] * self._saves + ["SIGINT"]
        run.start_clock()
        start = run.step
        logs, limit = None, self._fixed or self._modes.steps_limit
        self._modes.expected = self._first_watched(steps)
        with caught(*signals, first=self._acknowledge) as came:
            stopped = run.stop_reason is not None  # by a hook, before the first step
            while run.step < steps and not stopped:
                call = self._next_call(steps, limit)
                began = run.clock()
                logs = self._call(call)
                seconds = run.clock() - began
                if self._fixed is None:
                    limit = next_limit(limit, logs.steps, seconds)
                if run.step == start:
                    self._on_first_step()
                    show_headline(self._hooks, logs.losses)
                self._advance(logs.steps)
                run.window.add(logs)
                lost = self._workdir_error(last=run.step >= steps)
                if run.step >= call.log_at:
                    self._log(logs.summaries, complete=run.step < steps)
                if self._watch is not None and logs.watched:
                    self._watch.receive(logs.watched)
                self._hooks.after_step()
                self._feed.keep()  # may meet an error of the data; this call is logged by now
                flags = [run.stop_reason is not None, "SIGTERM" in came, "SIGINT" in came]
                flags.append(lost is not None)
                place = f"step {run.step}"
                (*flags, gone), (limit,) = run.agreement.agree(flags, [limit], place)
                limit = self._modes.steps_limit = int(limit)
                if gone:
                    raise lost or WorkerError("The first worker lost the workdir; see its output.")
                stopped = self._decide(*flags)
                if self.ending is not None and run.step < steps:
                    raise self.ending
        if run.window:  # stopped between two logs
            self._log(())
        self._modes.finish()
        return last_losses(logs)

    def read_counter(self) -> None:
        """Takes the step from the device, and moves the position in the data along."""
        self._feed.trained(self._run.read_counter())

    def _workdir_error(self, *, last: bool) -> Exception | None:
        """What has happened to the workdir. One worker raises it before anything is written."""
        try:
            self._run.lock.check(now=last)
        except (WorkdirError, WorkdirInUseError) as error:
            if self._run.agreement.workers == 1:
                raise
            return error
        return None

    def _decide(self, stopped: bool, terminate: bool, interrupt: bool) -> bool:
        """Decides how the run ends, from what any of the workers found. Returns `stopped`."""
        run = self._run
        if stopped and run.stop_reason is None:
            run.stop("another worker stopped")
        if terminate:
            run.logger.info(
                f"SIGTERM at step {run.step}: saving a checkpoint, then ending with exit code "
                f"{Preempted.CODE}. Run the same command again to continue from there."
            )
            self.ending = Preempted()
        elif interrupt:
            self.ending = KeyboardInterrupt()
        return stopped

    def _acknowledge(self, signal: str) -> None:
        """Says at once what the first Ctrl-C does. It is called in another thread."""
        if signal == "SIGINT":
            save = ", then saving a checkpoint" if self._saves else ""
            self._run.logger.info(
                f"Ctrl-C at step {self._run.step}: finishing the step and the hooks that are "
                f"due{save}; press Ctrl-C again to exit at once."
            )

    def _next_call(self, steps: int, limit: int) -> "_Call":
        """Plans the next call."""
        step, every = self._run.step, self._run.log_every
        log_at = min(steps, (step // every + 1) * every)
        stop_at = min(steps, self._hooks.next_due(step) or steps)
        records = self._modes.records
        if records or not (self._modes.mode == "loop" and self._async_logs):
            stop_at = min(stop_at, log_at)
        # A logged step is a call of its own, which also returns the summaries. So is a watched one.
        watch_at = None if self._watch is None else self._watch.next_step(step)
        alone = [one for one in (log_at if records else None, watch_at) if one is not None]
        if step + 1 in alone:
            request = self._watch.request if self._watch and step + 1 == watch_at else None
            return _Call(1, log_at, records and step + 1 == log_at, request)
        return _Call(min(stop_at - step, limit, *(one - 1 - step for one in alone)), log_at)

    def _first_watched(self, steps: int) -> Kind:
        """The kind of the first step to be watched, so that it is traced before step 1."""
        at = None if self._watch is None else self._watch.next_step(self._run.step)
        if self._watch is None or at is None or at > steps:
            return SILENT
        return at == steps or at % self._run.log_every == 0, self._watch.request

    def _call(self, call: "_Call") -> StepLogs:
        """Runs the steps. Starts the data again where an earlier call ended with them."""
        run, feed = self._run, self._feed
        try:
            logs = self._modes.run(feed, call.count, call.recording, call.watch)
        except (tf.errors.OutOfRangeError, StopIteration):
            self.read_counter()
            feed.after_end(run.step, run.info.steps)
            return self._call(call)
        except tf.errors.OpError as error:
            if feed.input.failed(error):
                self.read_counter()
                feed.after_error()
            if (explained := data_error(error)) is not None:
                raise explained from None
            raise
        feed.compare_workers(run.agreement)
        return logs

    def _advance(self, steps: int) -> None:
        self._run.step += steps
        self._feed.trained(steps)

    def _log(self, summaries: Sequence[Summary], *, complete: bool = False) -> None:
        """Logs the steps since the last log; summaries belong to the last of them.

        With `complete`, steps after the last multiple of `log_every` are left for the next log.
        """
        run = self._run
        *before, (step, scalars) = run.window.logs(run.info.batch_size, complete=complete)
        self._hooks.log_steps(before)
        self._hooks.log(step, scalars, summaries)
        self._warn_of_slow_input()

    def _warn_of_slow_input(self) -> None:
        """Reports once that training waits for its data. The first steps don't count."""
        run = self._run
        now = run.stopwatch.seconds()
        if self._warm is None:
            self._warm = now
            return
        fraction = run.stopwatch.fractions(self._warm)["input"]
        waited = now["input"] - self._warm["input"]
        if not self._warned and waited > _WAIT_SECONDS and fraction > _WAIT_FRACTION:
            self._warned = True
            run.logger.info(
                f"{fraction:.0%} of the time is spent waiting for data ({waited:.0f} s so far; "
                "logged as input/wait_fraction). "
                + (_FASTER_SOURCE if self._feed.reader.seekable else _FASTER_PIPELINE)
            )


def next_limit(limit: int, steps: int, seconds: float) -> int:
    """The most steps for the next call, given how long the last one took.

    The limit rises at most by a factor of two, and falls at once. A call that was cut short tells
    nothing, unless it was far too long.

    Args:
      limit: The limit of the last call.
      steps: Steps of the last call.
      seconds: Time that it took.
    """
    if steps < limit and seconds < 2 * _CALL_SECONDS:
        return limit
    fitting = int(_CALL_SECONDS * steps / max(seconds, 1e-9))
    return max(1, min(fitting, 2 * limit, _MAX_STEPS))
