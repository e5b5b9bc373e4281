"""Saving all of a run and going on from it, as if nothing had happened. Host code.

What a checkpoint holds besides the variables (`tfloss.state`): every hook's state, the position in
the data, the steps that are not logged yet, the random states of Python and NumPy, the config, and
the versions of what it was made with.
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfloss.checkpoint import BackgroundWriter, CheckpointDirectory, load_file, load_manifest
from tfloss.checkpoint.directory import versions
from tfloss.data.feed import Feed
from tfloss.seeds import process_states, set_process_states
from tfloss.state import newest_checkpoint

if TYPE_CHECKING:
    from tfloss.trainer import Trainer

_WINDOW, _RANDOM, _DATA = "window.npz", "random.json", "data_"


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
        self._place: dict[str, Any] | None = None  # in the data, until they are read
        self._place_files: dict[str, bytes] = {}
        self._feed: Feed | None = None  # whose place it is
        self._warned: Feed | None = None

    def save(self, feed: Feed | None) -> Path:
        """Saves everything as one checkpoint. All workers must call it; the first one writes."""
        trainer = self._trainer
        assert self._directory is not None
        for hook in trainer.hooks:
            if trainer.runs(hook):
                hook.before_save(trainer.step)
        place, data = feed.state() if feed is not None else (None, {})
        extra: dict[str, Any] = {
            "data": place and place | {"until": trainer.run.steps, "files": list(data)}
        }
        config = self._directory.path.parent / "config.json"
        if config.exists():
            extra["config"] = json.loads(config.read_text())
        files = {f"{_DATA}{name}": content for name, content in data.items()}
        files[_WINDOW] = trainer.window.saved()
        files[_RANDOM] = json.dumps(process_states()).encode()
        return trainer.state().save(
            self._directory,
            trainer.step,
            trainer.hooks,
            extra=extra,
            files=files,
            background=self.writer,
            write=trainer.agreement.chief,
        )

    def load(self) -> int | None:
        """Restores the newest checkpoint that is whole, and returns its step; None: there is none.

        The place in the data is kept for `place`.
        """
        trainer = self._trainer
        path = newest_checkpoint(self._directory, trainer.agreement, trainer.say)
        if self._directory is None or path is None:
            return None
        step = trainer.state().restore(self._directory, path, trainer.hooks)
        trainer.say(f"resuming at step {step} from {path}")
        manifest = load_manifest(path)
        self._report_versions(path, manifest["versions"])
        if window := load_file(path, _WINDOW):
            trainer.window.restore(window)
        if random := load_file(path, _RANDOM):
            set_process_states(json.loads(random))
        self._place, self._feed = manifest["extra"].get("data"), None
        names = self._place["files"] if self._place else []
        self._place_files = {name: load_file(path, f"{_DATA}{name}") or b"" for name in names}
        return step

    def place(self, feed: Feed, steps: int) -> None:
        """Brings a feed to where the checkpoint is in it, if a run to `steps` is the one it is of.

        A script may train on one data set after the other; run again, its first calls of `train`
        have nothing to do, and what was saved is the place in the data of a later one.
        """
        here = self._trainer.step < steps
        if here and self._directory is not None and feed is not self._warned:
            feed.warn(self._trainer.deterministic)
            self._warned = feed
        if self._place is None:
            return
        if self._feed is None and (here or steps >= self._place["until"]):
            self._feed = feed
        if here and self._feed is feed:
            place, self._place = self._place, None
            feed.resume(place, self._place_files, self._trainer.say)
            self._place_files = {}

    def _report_versions(self, path: Path, before: Mapping[str, str]) -> None:
        now = versions()
        changed = [f"{k} {before.get(k)} -> {v}" for k, v in now.items() if before.get(k) != v]
        if changed:
            warnings.warn(
                f"Since {path} was saved there are other versions: {', '.join(changed)}. The run "
                "goes on, but not to the bit as it would have done.",
                stacklevel=2,
            )
