"""Calls the hooks of a run: in order, at their steps, on the right workers. Host code."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tfloss.checkpoint.selection import saved_metrics
from tfloss.errors import Aborted, Preempted
from tfloss.hooks.base import Hook
from tfloss.hooks.evaluate import Evaluate
from tfloss.hooks.every import started_copy
from tfloss.hooks.logged_names import LoggedNames
from tfloss.hooks.monitored_metric import MonitoringHook, known_mode
from tfloss.hooks.trainer_protocol import TrainerProtocol
from tfloss.hooks.write_errors import survives
from tfloss.step.train_step import TrainStep
from tfloss.summary import Summary
from tfloss.trainer.curves import Curves
from tfloss.trainer.hook_states import (
    Arguments,
    States,
    hook_arguments,
    hook_states,
    set_hook_states,
)
from tfloss.trainer.run_state import RunState
from tfloss.trainer.workdir import write_deferred


class HookList:
    """The hooks of one call of `Trainer.train`, in the order in which they are called.

    Hooks that use the results of others are called after them, and hooks that save checkpoints are
    called last, wherever they stand: what the others found at a step is in the checkpoint of that
    step, and would be lost otherwise.

    Args:
      hooks: The hooks.
      run: The state of the run that they watch.
      trainer: What `Hook.trainer` gives them.
    """

    def __init__(self, hooks: Sequence[Hook], run: RunState, trainer: TrainerProtocol):
        self._hooks, self._run = list(hooks), run
        self._logged: tuple[int, dict[str, float]] = (0, {})  # the last step, and its values
        evaluated = [f"{hook.name}/" for hook in hooks if isinstance(hook, Evaluate)]
        self.curves = Curves(("losses/", *evaluated))
        for hook in self._hooks:
            hook.trainer = trainer

    def __iter__(self) -> Iterator[Hook]:
        return iter(self._hooks)

    @property
    def async_logs(self) -> bool:
        """Whether every hook that has an `on_log` accepts that it is called late."""
        return all(
            hook.async_logs or type(hook).on_log is Hook.on_log  # not overridden
            for hook in self._hooks
        )

    def write_deferred(self, workdir: Path | None) -> None:
        """Writes what was deferred until the first step, on the first worker.

        Args:
          workdir: The directory of the run, or None.

        Raises:
          OSError: A file can't be written, and no hook says that the run continues then.
        """
        if self._run.agreement.chief:
            write_deferred(workdir, survive=survives(self._hooks))

    @contextlib.contextmanager
    def running(self, finish: Callable[[], None]) -> Iterator[None]:
        """Starts the hooks; inside the `with` the steps are run; then ends every hook.

        Each hook that was started is ended, whatever the others do; `RunState.error` holds the
        error that the run ended with.

        Args:
          finish: Waits for what is written in the background. It is called last.

        Raises:
          BaseException: The first error of the steps, the hooks or `finish`.
        """
        started: list[Hook] = []
        run = self._run
        try:
            for hook in self._hooks:
                if hook.every is not None:
                    hook.every = started_copy(hook.every, run.info)
                if self._called_here(hook):
                    started.append(hook)
                    hook.before_train()
            yield
        except BaseException as error:
            run.error = error
            raise
        finally:
            failure: BaseException | None = None
            for hook in _in_order(started):
                try:
                    with run.stopwatch.during(hook.time_bucket):
                        hook.after_train()
                except KeyboardInterrupt:
                    run.error = failure = Aborted()  # so that the hooks after it don't save
                except BaseException as error:  # noqa: BLE001 - raised below, after the others
                    failure = failure or error
            try:
                finish()
            except Exception as error:  # noqa: BLE001 - the same
                failure = failure or error
            if failure is not None and (run.error is None or isinstance(failure, Aborted)):
                run.error = failure
                raise failure

    def next_due(self, step: int) -> int | None:
        """The first step after `step` at which a hook must be called, or None if none is known."""
        due = [hook.every.next_step(step) for hook in self._hooks if hook.every is not None]
        return min((one for one in due if one is not None), default=None)

    def after_step(self) -> None:
        """Calls the hooks that are due. Where time decides, the first worker's clock counts.

        Raises:
          Preempted: A hook ends the run. It is raised when all hooks of the step were called.
        """
        run = self._run
        timed = _in_order([hook for hook in self._hooks if hook.every is not None])
        due = [float(hook.every.due(run.step)) for hook in timed if hook.every is not None]
        preempted: Preempted | None = None
        for hook, now in zip(
            timed, run.agreement.agree([], due, "the hooks of a step")[1], strict=True
        ):
            if now and self._called_here(hook):
                try:
                    with run.stopwatch.during(hook.time_bucket):
                        hook.after_step(run.step)
                except Preempted as error:
                    preempted = error
        if preempted is not None:
            raise preempted

    def log(
        self, step: int, scalars: Mapping[str, float], summaries: Sequence[Summary] = ()
    ) -> None:
        """Gives the values of a step to every hook."""
        before = self._logged[1] if self._logged[0] == step else {}
        self._logged = step, {**before, **scalars}
        self.curves.add(step, scalars)
        with self._run.stopwatch.during("hooks"):
            for hook in self._hooks:
                if self._called_here(hook):
                    hook.on_log(step, scalars, summaries)

    def log_steps(self, logs: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Gives the values of several steps, in order, to one hook after the other."""
        for step, scalars in logs:
            self.curves.add(step, scalars)
        with self._run.stopwatch.during("hooks"):
            for hook in self._hooks:
                if self._called_here(hook):
                    for step, scalars in logs:
                        hook.on_log(step, scalars, ())

    def metrics(self, step: int) -> dict[str, dict[str, Any]]:
        """Returns what was logged at a step, if it is the last one, as a checkpoint holds it."""
        last, scalars = self._logged
        if last != step:
            return {}
        return saved_metrics(scalars, {name: known_mode(name, self._hooks) for name in scalars})

    def before_save(self) -> None:
        """Tells every hook that a checkpoint of the current step will be written."""
        for hook in self._hooks:
            if self._called_here(hook):
                hook.before_save(self._run.step)

    def states(self) -> dict[str, dict[str, Any]]:
        """Returns what checkpoints keep of the hooks: `{name: state}`, as JSON values."""
        return hook_states(self._hooks)

    def arguments(self) -> dict[str, dict[str, str]]:
        """Returns what tells hooks of one class apart: `{name: {argument: text}}`."""
        return hook_arguments(self._hooks)

    def restore_states(self, states: States, arguments: Arguments | None) -> None:
        """Gives each hook the state that `states` returned for it, see `set_hook_states`."""
        set_hook_states(self._hooks, states, arguments)

    def _called_here(self, hook: Hook) -> bool:
        """Whether a hook is called on this worker: writers are called on the first one only."""
        return self._run.agreement.chief or not hook.chief_only


def check_monitored_names(hooks: Sequence[Hook], traced: Iterable[str], step: TrainStep) -> None:
    """Refuses names that hooks follow and nothing logs. Host code, before the first step.

    Args:
      hooks: All hooks of the run.
      traced: Tags of the scalars and summaries of the training step, which was traced.
      step: The training step.

    Raises:
      ValueError: The message has the hook, the name and the nearest name.
    """
    own = [
        getattr(type(step), name) is not getattr(TrainStep, name) for name in ("step", "forward")
    ]
    names = LoggedNames(hooks, traced, other_losses=any(own))
    for hook in hooks:
        if isinstance(hook, MonitoringHook):
            hook.check_names(names)


def _in_order(hooks: Sequence[Hook]) -> list[Hook]:
    """First those that produce results, then those that use them, then those that save all."""
    return sorted(hooks, key=lambda hook: (hook.time_bucket == "checkpoint", hook.uses_results))
