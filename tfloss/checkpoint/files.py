"""The files of checkpoints: whole or absent, whenever the process is killed.

Host code, without TensorFlow: what is in the files, `CheckpointDirectory` knows.
"""

import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tfloss.checkpoint import manifest as manifests
from tfloss.common.files import sync
from tfloss.common.unique_names import unique_name
from tfloss.errors import CheckpointWriteError

Logger = logging.Logger | logging.LoggerAdapter[logging.Logger]

# What a killed process may leave: `.partial_*` is rubbish; `.replaced_00000100` is a whole
# checkpoint that had to make room for a new one of the same step.
_PARTIAL, _REPLACED, _DAMAGED = ".partial_", ".replaced_", "damaged_"


class CheckpointFiles:
    """A directory of checkpoints, `step_00000100` each. One process writes, any may read.

    Args:
      path: made when the first one is written.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._problems: dict[int, str | None] = {}  # of those that were looked at, or written

    def steps(self) -> list[int]:
        """The steps of all checkpoints, in order, damaged ones too. Other names don't count."""
        found = set()
        for path in self.path.glob("*/"):
            number = re.search(r"\d{8,}$", path.name)
            step = int(number[0]) if number else 0
            if path in (self._target(step), self._replaced(step)):
                found.add(step)
        return sorted(found)

    def at(self, step: int) -> Path:
        """The directory of the checkpoint of a step."""
        target, replaced = self._target(step), self._replaced(step)
        return replaced if not target.exists() and replaced.exists() else target

    def latest(self) -> Path | None:
        """The newest checkpoint, damaged or not, or None."""
        steps = self.steps()
        return self.at(steps[-1]) if steps else None

    def problem(self, step: int) -> str | None:
        """What is wrong with a checkpoint, by the name of the file; None if it is whole.

        A file may be missing, truncated, altered, or not among those that were written. All of
        them are read (`docs/checkpoints.md` says how fast).
        """
        self._problems[step] = manifests.problem(self.at(step), step)
        return self._problems[step]

    def valid_steps(self) -> list[int]:
        """The steps of whole checkpoints, in order.

        Each is read once; one that this object has looked at before, or written, is not again.
        """
        steps = self.steps()
        for step in steps:
            if step not in self._problems:
                self.problem(step)
        return [step for step in steps if self._problems[step] is None]

    def newest_valid(self, logger: Logger) -> Path | None:
        """Finds the newest valid checkpoint. All files are read again; corrupt ones stay.

        Args:
          logger: Gets a message for each corrupt checkpoint that is skipped.

        Returns:
          The directory of the checkpoint; None if no checkpoint is valid.
        """
        for step in reversed(self.steps()):
            wrong = self.problem(step)
            if wrong is None:
                return self.at(step)
            logger.info(
                f"Skipping checkpoint {self.at(step)}, which is corrupt: {wrong}. It stays as it "
                "is; the checkpoint before it is tried next."
            )
        return None

    def delete(self, step: int) -> None:
        """Deletes one: first it stops being a checkpoint, then its files go."""
        aside = self.path / f"{_PARTIAL}deleted_{step}"
        for each in (self._replaced(step), self._target(step)):
            if each.exists():
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(each, aside)
        shutil.rmtree(aside, ignore_errors=True)

    def write(self, step: int, fill: Callable[[Path], None], manifest: Mapping[str, Any]) -> Path:
        """Writes a checkpoint: everything aside and on the disk first, then one rename.

        A whole one of the same step is replaced; a damaged one is renamed to
        `damaged_00000100` and stays.

        Args:
          step: names it.
          fill: writes its files into the directory that it is given.
          manifest: what `manifest.json` says beside the checksums.

        Returns:
          Its directory.

        Raises:
          CheckpointWriteError: it can't be written. Earlier checkpoints are not touched, and no
            half of it stays.
        """
        partial, target = self.path / f"{_PARTIAL}{step}", self._target(step)
        try:
            self._make()
            self._clear_up()
            partial.mkdir()
            fill(partial)
            manifests.write_manifest(partial, {"step": step, **manifest})
            sync(*partial.iterdir(), partial)
            if target.exists():
                os.replace(target, self._aside(step))
            os.replace(partial, target)
            sync(self.path)
        except Exception as error:
            shutil.rmtree(partial, ignore_errors=True)  # a full disk needs the room
            if isinstance(error, OSError):
                raise CheckpointWriteError(self._explained(target, error)) from error
            raise
        self._problems[step] = None
        shutil.rmtree(self._replaced(step), ignore_errors=True)
        return target

    def _target(self, step: int) -> Path:
        return self.path / f"step_{step:08d}"

    def _replaced(self, step: int) -> Path:
        return self.path / f"{_REPLACED}{step:08d}"

    def _aside(self, step: int) -> Path:
        """Where the checkpoint of a step goes that is written again."""
        if self.problem(step) is None:
            return self._replaced(step)
        taken = {path.name for path in self.path.iterdir()}
        return self.path / unique_name(f"{_DAMAGED}{step:08d}", taken)

    def _make(self) -> None:
        if not self.path.is_dir():
            self.path.mkdir(parents=True, exist_ok=True)
            sync(self.path.parent)

    def _clear_up(self) -> None:
        """Removes what a killed process left; what it had moved out of the way comes back."""
        for replaced in self.path.glob(f"{_REPLACED}*"):
            target = self.path / replaced.name.replace(_REPLACED, "step_")
            if target.exists():
                shutil.rmtree(replaced, ignore_errors=True)
            else:
                os.replace(replaced, target)
        for partial in self.path.glob(f"{_PARTIAL}*"):
            shutil.rmtree(partial, ignore_errors=True)

    def _explained(self, target: Path, error: OSError) -> str:
        """What happened, how much room there is, and what is left."""
        reason = error.strerror or str(error)
        if error.filename and Path(error.filename) != target:
            reason += f" ({error.filename})"
        there = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        free = shutil.disk_usage(there).free
        steps = self.valid_steps()
        left = f"The newest whole one is {self.at(steps[-1])}" if steps else "No whole one is there"
        return (
            f"The checkpoint {target} can't be written: {reason}. {free / 1e6:,.1f} MB are free "
            f"there. {left}."
        )
