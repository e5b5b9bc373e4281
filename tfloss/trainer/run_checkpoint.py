"""The checkpoint of a run: saves all of the run, and restores it so that it continues. Host.

Besides the variables (`tfloss.trainer.checkpointed_variables`) a checkpoint holds every hook's
state, the position in the data, the steps that are not logged yet, the random states of Python and
NumPy, the config, and the versions of the libraries that it was made with.
"""

import contextlib
import dataclasses
import functools
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tfloss.checkpoint import BackgroundWriter, CheckpointDirectory, load_file, load_manifest
from tfloss.checkpoint.directory import versions
from tfloss.checkpoint.files import supersede_later
from tfloss.checkpoint.manifest import again_if_deleted, deletion_noticed, is_file_name
from tfloss.checkpoint.selection import METRICS
from tfloss.common import activity
from tfloss.data.feed import Feed
from tfloss.errors import CheckpointDeletedError, CheckpointError, WorkdirError
from tfloss.hooks import Hook
from tfloss.step.random_states import process_states, set_process_states
from tfloss.trainer.checkpoint_selection import newest_checkpoint, selected_checkpoint
from tfloss.trainer.checkpointed_variables import CheckpointedVariables
from tfloss.trainer.hook_list import HookList
from tfloss.trainer.hyperparameters import Hyperparameters
from tfloss.trainer.run_state import RunState
from tfloss.trainer.workdir import read_config

_WINDOW, _RANDOM, _DATA = "window.npz", "random.json", "data_"
_ARGUMENTS, _HYPERPARAMETERS = "hook_arguments", "hyperparameters"

Position = tuple[dict[str, Any], dict[str, bytes]]  # what `Feed.state` returns


@dataclasses.dataclass
class _SavedCall:
    """What applies only to the call of `train` in which the checkpoint was saved.

    Attributes:
      position: The position in the data, and `until`, the step that the call was to reach; or None.
      files: The files of the position.
      hooks: The hooks' states.
      extra: The further entries of the manifest: the hooks' arguments, the hyperparameters and the
        values that were logged at the step.
      path: The directory of the checkpoint.
      step: The step of the checkpoint.
      random: The states of the global generators of the process, or None.
      found: Whether a call of this process is known to be the same one.
    """

    position: dict[str, Any] | None
    files: dict[str, bytes]
    hooks: dict[str, dict[str, Any]]
    extra: dict[str, Any]
    path: Path
    step: int
    random: dict[str, Any] | None = None
    found: bool = False

    @property
    def until(self) -> int:
        """The step that the call was to reach."""
        return self.position["until"] if self.position else self.step


class RunCheckpoint:
    """Saves and restores the checkpoints of one trainer.

    Args:
      run: The state of the run.
      state: The variables that checkpoints hold.
      directory: The directory of the checkpoints, or None.
      background: Whether checkpoints are written while training continues.

    Attributes:
      writer: What writes checkpoints in the background, or None.
      loaded: Whether `load` or `restore` was called, and did not fail.
    """

    def __init__(
        self,
        run: RunState,
        state: CheckpointedVariables,
        directory: CheckpointDirectory | None,
        *,
        background: bool,
    ):
        self._run, self._state, self._directory = run, state, directory
        self.writer = BackgroundWriter() if background and directory is not None else None
        self._hyperparameters = Hyperparameters(state.train_step)
        self.loaded = False
        self._config: dict[str, Any] | None = None
        self._saved_call: _SavedCall | None = None
        self._metrics: tuple[int, dict[str, Any]] = (0, {})  # a step, and what was logged at it

    def wait(self) -> None:
        """Waits for what is written in the background. Host code."""
        if self.writer is not None:
            self.writer.wait()

    @activity.during("saving a checkpoint")
    def save(self, hooks: HookList, position: Position | None) -> Path:
        """Saves everything as one checkpoint. All workers must call it; the first one writes.

        Args:
          hooks: The hooks of the current call of `train`.
          position: What `Feed.state` returns, or None if there are no data yet.

        Returns:
          The directory of the checkpoint.

        Raises:
          WorkdirError, WorkdirInUseError: The workdir was renamed, deleted, replaced or taken over.
          ValueError: There is no optimizer. The checkpoint would replace one that has its state.
        """
        run = self._run
        if not self._state.trains:
            raise ValueError(
                "A Trainer without an optimizer saves no checkpoints, since training could not "
                "resume from them. Give it the optimizer, or save the weights: "
                "trainer.model.save_weights(path)."
            )
        assert self._directory is not None
        run.lock.check(now=True)
        hooks.before_save()
        hooks.write_deferred(self._directory.path.parent)
        data, content = position or (None, {})
        data = data and data | {"until": run.info.steps, "files": list(content)}
        states: Mapping[str, Any] = hooks.states()
        known = self._metrics[1] if self._metrics[0] == run.step else {}
        self._metrics = run.step, known | hooks.metrics(run.step)
        more = {
            _ARGUMENTS: hooks.arguments(),
            _HYPERPARAMETERS: self._hyperparameters.saved(),
            METRICS: self._metrics[1],
        }
        if (saved := self._saved_call) is not None:  # the call that it belongs to has not begun yet
            data, content, states = saved.position, saved.files, saved.hooks
            more = saved.extra
        # "stopped" tells a process that evaluates beside this one that no more checkpoints come.
        extra: dict[str, Any] = {"data": data, "stopped": run.stop_reason, **more}
        with contextlib.suppress(WorkdirError):  # damaged since the run began
            self._config = read_config(self._directory.path.parent)
        if self._config is not None:
            extra["config"] = self._config
        files = {f"{_DATA}{name}": one for name, one in content.items()}
        files[_WINDOW] = run.window.saved()
        files[_RANDOM] = json.dumps(process_states(self._state.strategy)).encode()
        return self._state.save(
            self._directory,
            run.step,
            states,
            extra=extra,
            files=files,
            background=self.writer,
            write=run.agreement.chief,
        )

    def select(
        self, step: int | None, best: str | None, hooks: Sequence[Hook]
    ) -> Callable[[], None]:
        """Finds a checkpoint to restore; see `selected_checkpoint`.

        It needs no variables, so a wrong name is reported before the model is built. If a trainer
        beside this process deletes the checkpoint until it is restored, the next one is found,
        unless its step was given. All workers then do the same.

        Returns:
          A function that restores the checkpoint. It may raise CheckpointDeletedError.
        """
        run = self._run
        find = functools.partial(
            selected_checkpoint,
            self._directory,
            run.agreement,
            run.logger,
            step=step,
            best=best,
            hooks=hooks,
        )
        found = [find() if step is not None else again_if_deleted(find)]

        def restore() -> None:
            path = found.pop() if found else find()
            deleted: CheckpointDeletedError | None = None
            try:
                self.restore(path, selected=step is not None or best is not None)
            except CheckpointDeletedError as error:
                deleted = error
            if run.agreement.agree([deleted is not None])[0][0]:
                raise deleted or CheckpointDeletedError(f"Another worker did not find {path}.")

        return restore if step is not None else functools.partial(again_if_deleted, restore)

    def load(self, seed: int | None) -> bool:
        """Restores the newest valid checkpoint; without one, seeds the model.

        What belongs to the call of `train` that it was saved in waits for `resume_call`.

        Args:
          seed: The seed of the model's seed generators, or None.

        Returns:
          Whether there was a checkpoint.
        """
        path = newest_checkpoint(self._directory, self._run.agreement, self._run.logger)
        if path is not None:
            self.restore(path)
        elif seed is not None:
            self._state.seed(seed)
        self.loaded = True  # not earlier: after an error it must be tried again
        return path is not None

    @activity.during("restoring the checkpoint")
    def restore(self, path: Path, *, selected: bool = False) -> None:
        """Restores one checkpoint, and sets the step of the run.

        Args:
          path: The directory of the checkpoint.
          selected: Whether the caller has asked for this checkpoint. If there are later ones,
            training then goes back, see `after_first_step`.
        """
        run = self._run
        assert self._directory is not None
        script = self._hyperparameters.values()
        with deletion_noticed(path):
            manifest = load_manifest(path)
            window, random = load_file(path, _WINDOW), load_file(path, _RANDOM)
            position = manifest["extra"].get("data")
            files = _position_files(path, position["files"] if position else [])
            step, hooks = self._state.restore(self._directory, path)
        self._hyperparameters.assign(script)  # until the call comes that the saved ones belong to
        run.logger.info(self._state.describe_restored(path, manifest["variables"]))
        _report_versions(path, manifest["versions"])
        if window:
            run.window.restore(window)
        states = json.loads(random) if random else None
        if states is not None:
            set_process_states(states, self._state.strategy)
        found = manifest["extra"]
        kept = (_ARGUMENTS, _HYPERPARAMETERS, METRICS)
        more = {key: found[key] for key in kept if key in found}
        self._saved_call = _SavedCall(position, files, hooks, more, path, step, states)
        self._metrics = step, found.get(METRICS, {})
        run.step = step
        run.rewound = selected and any(later > step for later in self._directory.steps())
        self.loaded = True

    def after_first_step(self, hooks: HookList) -> None:
        """Writes what describes the run, and renames later checkpoints if training has gone back.

        From now on a resumed run continues from here, and no later checkpoint is in the way of
        those that will be saved. The writers of logs have kept what they had logged for later
        steps, too.
        """
        run = self._run
        if self._directory is None:
            return
        hooks.write_deferred(self._directory.path.parent)
        if not run.rewound:
            return
        directory, start = self._directory, run.info.start
        rename = functools.partial(supersede_later, directory, start)
        found = run.agreement.run_on_all(
            "rename the later checkpoints", rename if run.agreement.chief else list[Path]
        )
        run.rewound = False
        if found:
            names = ", ".join(path.name for path in found)
            run.logger.info(
                f"training continues from step {start}, so the later checkpoints in "
                f"{directory.path} have been renamed: {names}. Their logs are in files named "
                "superseded.*. Delete them when you no longer need them."
            )

    def resume_call(self, steps: int, hooks: HookList, feed: Feed) -> None:
        """Restores what belongs to the call of `train` that the checkpoint was saved in.

        A script may call `train` several times. When it runs again, its first calls have nothing to
        do, and the checkpoint belongs to a later one. What that call left behind is restored when
        it comes, even if it has nothing to do either. Then the next call begins with it, as it did
        before, and after everything that the script does between its calls.

        Args:
          steps: The step that the call is to reach.
          hooks: The hooks of the call.
          feed: The data of the call.
        """
        saved, feed.taken = self._saved_call, 0
        self._hyperparameters.begin_call(steps)
        if saved is None:
            return
        begins = self._run.step < steps
        if begins:
            self._saved_call = None
        if saved.found:
            return
        if not (begins or steps >= saved.until):
            self._hyperparameters.repeat_call(steps, saved.extra.get(_HYPERPARAMETERS, {}))
            return
        saved.found = True
        if saved.random is not None:
            set_process_states(saved.random, self._state.strategy)
        if _HYPERPARAMETERS in saved.extra:
            self._hyperparameters.restore(saved.extra[_HYPERPARAMETERS], saved.path)
        hooks.restore_states(saved.hooks, saved.extra.get(_ARGUMENTS))
        if saved.position is not None:
            midway = saved.until > saved.step
            # A call that has nothing to do doesn't read: a later one may have other data.
            feed.resume(saved.position, saved.files, self._run.logger, midway=midway, read=begins)

    def end_call(self) -> None:
        """Ends a call of `train`, however it ends."""
        self._hyperparameters.end_call()


def _position_files(path: Path, names: list[Any]) -> dict[str, bytes]:
    """Reads the files of the position in the data. Their names become file names again later."""
    files: dict[str, bytes] = {}
    for name in names:
        content = load_file(path, f"{_DATA}{name}") if is_file_name(name) else None
        if content is None:
            raise CheckpointError(
                f"The checkpoint {path} is corrupt: its manifest names {name!r} as a file of the "
                "position in the data, but the checkpoint has no such file. To continue from the "
                "checkpoint before it, move it away."
            )
        files[name] = content
    return files


def _report_versions(path: Path, before: Mapping[str, str]) -> None:
    """Warns if libraries have changed since a checkpoint was saved."""
    now = versions()
    changed = [f"{k} {before.get(k)} -> {v}" for k, v in now.items() if before.get(k) != v]
    if changed:
        warnings.warn(
            f"These versions have changed since {path} was saved: {', '.join(changed)}. Training "
            "continues, but may not be bit-exact.",
            stacklevel=2,
        )
