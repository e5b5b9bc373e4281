"""The directories of checkpoints: listed, checked, written atomically, deleted.

A checkpoint is complete or absent at any moment, also if the process is killed during a write. It
is written by `CheckpointFiles.write` here, and restored in `tfloss/checkpoint/directory.py`, which
knows what the files contain. Host code, without TensorFlow.
"""

import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tfloss.checkpoint.manifest import find_problem, write_manifest
from tfloss.common.files import replace_directory, sync
from tfloss.common.unique_names import unique_name
from tfloss.errors import CheckpointWriteError

Logger = logging.Logger | logging.LoggerAdapter[logging.Logger]

# A killed process may leave `.partial_*`, an incomplete checkpoint, and `.replaced_00000100`, a
# valid one that was renamed because a new one of the same step takes its place.
_PARTIAL, _REPLACED, _CORRUPT = ".partial_", ".replaced_", "damaged_"


class CheckpointFiles:
    """A directory of checkpoints, `step_00000100` each. One process writes, any may read.

    Args:
      path: The directory. It is created with the first checkpoint.

    Attributes:
      path: The directory.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._problems: dict[int, str | None] = {}  # of the steps that were checked or written

    def steps(self) -> list[int]:
        """Lists the steps of all checkpoints, in order, those of corrupt ones too."""
        found: set[int] = set()
        for path in self.path.glob("*/"):
            number = re.search(r"\d{8,}$", path.name)
            step = int(number[0]) if number else 0
            if path in (self._target(step), self._replaced(step)):
                found.add(step)
        return sorted(found)

    def at(self, step: int) -> Path:
        """Returns the directory of the checkpoint of a step.

        Args:
          step: The step. Its checkpoint need not exist.
        """
        target, replaced = self._target(step), self._replaced(step)
        return replaced if not target.exists() and replaced.exists() else target

    def latest(self) -> Path | None:
        """Returns the directory of the newest checkpoint, valid or corrupt; None without one."""
        steps = self.steps()
        return self.at(steps[-1]) if steps else None

    def problem(self, step: int) -> str | None:
        """Checks all files of a checkpoint. Reads them all (docs/checkpoints.md has the speed).

        Args:
          step: The step of the checkpoint.

        Returns:
          None if the checkpoint is valid; else the file that is missing, truncated, changed or
          unreadable, in half a sentence.
        """
        self._problems[step] = find_problem(self.at(step), step)
        return self._problems[step]

    def valid_steps(self) -> list[int]:
        """Lists the steps of valid checkpoints, in order.

        A checkpoint that this object has checked or written before is not read again.
        """
        steps = self.steps()
        for step in steps:
            if step not in self._problems:
                self.problem(step)
        return [step for step in steps if self._problems[step] is None]

    def newest_valid(self, logger: Logger) -> Path | None:
        """Finds the newest valid checkpoint. Files are read even if they were checked before.

        Args:
          logger: Receives a message for each corrupt checkpoint that is skipped.

        Returns:
          The directory of the checkpoint; None if there is no valid one.
        """
        for step in reversed(self.steps()):
            problem = self.problem(step)
            if problem is None:
                return self.at(step)
            logger.info(
                f"Skipping checkpoint {self.at(step)}, which is corrupt: {problem}. It stays as it "
                "is; the checkpoint before it is tried next."
            )
        return None

    def delete(self, step: int) -> None:
        """Deletes a checkpoint. It is renamed first, so that no incomplete one has its name.

        Args:
          step: The step of the checkpoint.

        Raises:
          OSError: The checkpoint can't be renamed.
        """
        trash = self.path / f"{_PARTIAL}deleted_{step}"
        for path in (self._replaced(step), self._target(step)):
            if path.exists():
                shutil.rmtree(trash, ignore_errors=True)
                os.replace(path, trash)
        shutil.rmtree(trash, ignore_errors=True)

    def write(
        self, step: int, write_files: Callable[[Path], None], manifest: Mapping[str, Any]
    ) -> Path:
        """Writes a checkpoint: all files to another directory and to the disk, then one rename.

        A valid checkpoint of the same step is replaced. A corrupt one is renamed to
        `damaged_00000100` and stays.

        Args:
          step: The step of the checkpoint.
          write_files: Writes the files into the directory that it is given.
          manifest: The entries of `manifest.json`, without the checksums.

        Returns:
          The directory of the checkpoint.

        Raises:
          CheckpointWriteError: The operating system refuses a write. Earlier checkpoints are not
            changed, and no incomplete one stays.
        """
        partial, target = self.path / f"{_PARTIAL}{step}", self._target(step)
        try:
            _make_directory(self.path)
            self._clean_up()
            partial.mkdir()
            write_files(partial)
            write_manifest(partial, {"step": step, **manifest})
            sync(*partial.iterdir(), partial)
            aside = self._aside(step) if target.exists() else self._replaced(step)
            replace_directory(partial, target, aside)
            sync(self.path)
        except Exception as error:
            shutil.rmtree(partial, ignore_errors=True)  # a full disk needs the space
            if isinstance(error, OSError):
                raise CheckpointWriteError(self._write_error(target, error)) from error
            raise
        self._problems[step] = None
        shutil.rmtree(self._replaced(step), ignore_errors=True)
        return target

    def _target(self, step: int) -> Path:
        return self.path / f"step_{step:08d}"

    def _replaced(self, step: int) -> Path:
        return self.path / f"{_REPLACED}{step:08d}"

    def _aside(self, step: int) -> Path:
        """Returns the path for the existing checkpoint of a step that is written again."""
        if self.problem(step) is None:
            return self._replaced(step)
        taken = {path.name for path in self.path.iterdir()}
        return self.path / unique_name(f"{_CORRUPT}{step:08d}", taken)

    def _clean_up(self) -> None:
        """Removes what a killed process left, and renames a replaced checkpoint back."""
        for replaced in self.path.glob(f"{_REPLACED}*"):
            target = self.path / replaced.name.replace(_REPLACED, "step_")
            if target.exists():
                shutil.rmtree(replaced, ignore_errors=True)
            else:
                os.replace(replaced, target)
        for partial in self.path.glob(f"{_PARTIAL}*"):
            shutil.rmtree(partial, ignore_errors=True)

    def _write_error(self, target: Path, error: OSError) -> str:
        """Describes what happened, the free disk space and the newest valid checkpoint."""
        reason = error.strerror or str(error)
        if error.filename and Path(error.filename) != target:
            reason += f" ({error.filename})"
        existing = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        free = shutil.disk_usage(existing).free
        steps = self.valid_steps()
        newest = (
            f"The newest valid checkpoint is {self.at(steps[-1])}"
            if steps
            else "There is no valid checkpoint"
        )
        return (
            f"The checkpoint {target} can't be written: {reason}. The disk has "
            f"{free / 1e6:,.1f} MB left. {newest}."
        )


def _make_directory(path: Path) -> None:
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        sync(path.parent)
