"""Saving all of a run and going on from it, as if nothing had happened. Host code.

Besides the variables (`tfloss.trainer.checkpointed_state`) a checkpoint holds every hook's state,
the position in the data, the steps that are not logged yet, the random states of Python and NumPy,
the config, and the versions of the libraries that it was made with.
"""

import dataclasses
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfloss.checkpoint import BackgroundWriter, CheckpointDirectory, load_file, load_manifest
from tfloss.checkpoint.directory import versions
from tfloss.data.feed import Feed
from tfloss.step.random_states import process_states, set_process_states
from tfloss.trainer.checkpointed_state import named_hooks, newest_checkpoint, set_hook_states

if TYPE_CHECKING:
    from tfloss.trainer.trainer import Trainer

_WINDOW, _RANDOM, _DATA = "window.npz", "random.json", "data_"


@dataclasses.dataclass
class _Place:
    """What is only for the call of `train` that a checkpoint was saved in.

    Attributes:
      data: where it was in the data, and `until`, the step that the call was to reach; or None.
      files: of the data's position.
      hooks: the hooks' states.
      step: of the checkpoint.
      feed: the data of that call, once they are known.
    """

    data: dict[str, Any] | None
    files: dict[str, bytes]
    hooks: dict[str, dict[str, Any]]
    step: int
    feed: Feed | None = None


class Resume:
    """The checkpoints of one trainer.

    Args:
      trainer: whose state it is.
      directory: of its checkpoints, or None.
      background: whether they are written while training goes on.

    Attributes:
      writer: writes them in the background, or None.
    """

    def __init__(
        self, trainer: "Trainer", directory: CheckpointDirectory | None, *, background: bool
    ):
        self._trainer, self._directory = trainer, directory
        self.writer = BackgroundWriter() if background and directory is not None else None
        self._place: _Place | None = None
        self._warned: Feed | None = None

    def save(self, feed: Feed | None) -> Path:
        """Saves everything as one checkpoint. All workers must call it; the first one writes."""
        trainer = self._trainer
        assert self._directory is not None
        for hook in trainer.hooks:
            if trainer.runs(hook):
                hook.before_save(trainer.step)
        data, content = feed.state() if feed is not None else (None, {})
        data = data and data | {"until": trainer.run.steps, "files": list(content)}
        hooks: Mapping[str, Any] = {k: v.state for k, v in named_hooks(trainer.hooks).items()}
        if self._place is not None:  # the call that it is of has not begun yet
            data, content, hooks = self._place.data, self._place.files, self._place.hooks
        extra: dict[str, Any] = {"data": data}
        config = self._directory.path.parent / "config.json"
        if config.exists():
            extra["config"] = json.loads(config.read_text())
        files = {f"{_DATA}{name}": one for name, one in content.items()}
        files[_WINDOW] = trainer.window.saved()
        files[_RANDOM] = json.dumps(process_states()).encode()
        return trainer.state().save(
            self._directory,
            trainer.step,
            hooks,
            extra=extra,
            files=files,
            background=self.writer,
            write=trainer.agreement.chief,
        )

    def load(self) -> int | None:
        """Restores the newest checkpoint that is whole, and returns its step; None: there is none.

        What belongs to the call of `train` that it was saved in is kept for `place`.
        """
        trainer = self._trainer
        path = newest_checkpoint(self._directory, trainer.agreement, trainer.logger)
        if self._directory is None or path is None:
            return None
        step, hooks = trainer.state().restore(self._directory, path)
        trainer.logger.info(f"resuming at step {step} from {path}")
        manifest = load_manifest(path)
        self._report_versions(path, manifest["versions"])
        if window := load_file(path, _WINDOW):
            trainer.window.restore(window)
        if random := load_file(path, _RANDOM):
            set_process_states(json.loads(random))
        data = manifest["extra"].get("data")
        names = data["files"] if data else []
        files = {name: load_file(path, f"{_DATA}{name}") or b"" for name in names}
        self._place = _Place(data, files, hooks, step)
        return step

    def place(self, feed: Feed, steps: int) -> None:
        """Brings data and hooks to where the checkpoint was, if a run to `steps` is what it is of.

        A script may train on one data set after the other; run again, its first calls of `train`
        have nothing to do, and what was saved is the place of a later one.
        """
        trainer, place = self._trainer, self._place
        here = trainer.step < steps
        if here and self._directory is not None and feed is not self._warned:
            feed.warn(trainer.deterministic)
            self._warned = feed
        if place is None:
            return
        until = place.data["until"] if place.data else place.step
        if place.feed is None and (here or steps >= until):
            place.feed = feed
        if not here:
            return
        self._place = None
        if place.feed is not feed:  # a later call, with hooks of its own
            set_hook_states(trainer.lasting_hooks(), place.hooks)
            return
        set_hook_states(trainer.hooks, place.hooks)
        if place.data:
            midway = until > place.step
            feed.resume(place.data, place.files, trainer.logger, midway=midway)

    def _report_versions(self, path: Path, before: Mapping[str, str]) -> None:
        now = versions()
        changed = [f"{k} {before.get(k)} -> {v}" for k, v in now.items() if before.get(k) != v]
        if changed:
            warnings.warn(
                f"Since {path} was saved there are other versions: {', '.join(changed)}. The run "
                "goes on, but not to the bit as it would have done.",
                stacklevel=2,
            )
