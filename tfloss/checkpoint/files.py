"""The directories of checkpoints: listed, checked, written atomically, deleted.

A checkpoint is complete or absent at any moment, also if the process is killed during a write. It
is written by `CheckpointFiles.write` here, and restored in `tfloss/checkpoint/directory.py`, which
knows what the files contain. Host code, without TensorFlow.
"""

import contextlib
import errno
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tfloss.checkpoint.manifest import (
    again_if_deleted,
    find_problem,
    unlisted_files,
    write_manifest,
)
from tfloss.common.files import sync
from tfloss.common.reading import check_directory
from tfloss.common.replacement import delete, displaced, replacement
from tfloss.common.unique_names import unique_name
from tfloss.errors import (
    CheckpointDeletedError,
    CheckpointError,
    CheckpointWriteError,
    WorkdirError,
)

Logger = logging.Logger | logging.LoggerAdapter[logging.Logger]

_CORRUPT = "damaged_"
_SUPERSEDED = "superseded_"  # later than a step to which training has gone back


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
        """Lists the steps of all checkpoints, in order, those of corrupt ones too.

        Raises:
          CheckpointError: The directory can't be read. It is not taken for an empty one, since a
            run would start from the beginning.
        """
        found: set[int] = set()
        for path in (*(self.path / name for name in _names(self.path)), *displaced(self.path)):
            number = re.search(r"\d{8,}$", path.name)
            step = int(number[0]) if number else 0
            if path == self._target(step):
                found.add(step)
        return sorted(found)

    def has(self, step: int) -> bool:
        """Returns whether there is a checkpoint of a step, valid or corrupt, and it can be seen.

        Args:
          step: The step.
        """
        with contextlib.suppress(CheckpointError):
            return step in self.steps()
        return False

    def at(self, step: int) -> Path:
        """Returns the directory of the checkpoint of a step.

        Args:
          step: The step. Its checkpoint need not exist.
        """
        target = self._target(step)
        return target if os.path.lexists(target) else displaced(self.path).get(target, target)

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

        Raises:
          CheckpointDeletedError: The checkpoint was deleted or replaced meanwhile.
        """
        self._problems[step] = find_problem(self.at(step), step)
        return self._problems[step]

    def valid_steps(self) -> list[int]:
        """Lists the steps of valid checkpoints, in order.

        A checkpoint that this object has checked or written before is not checked again. Of others,
        only files whose size or modification time has changed are read.
        """
        steps = self.steps()
        for step in steps:
            if step not in self._problems:
                with contextlib.suppress(CheckpointDeletedError):
                    self._problems[step] = find_problem(self.at(step), step, trust_times=True)
        return [step for step in steps if self._problems.get(step, "deleted") is None]

    def newest_valid(self, logger: Logger) -> Path | None:
        """Finds the newest valid checkpoint. Files are read even if they were checked before.

        Args:
          logger: Receives a message for each corrupt checkpoint that is skipped.

        Returns:
          The directory of the checkpoint; None if there is no valid one. If a trainer deletes one
          while it is read, the checkpoints are listed again.
        """
        step = again_if_deleted(lambda: self.first_valid(self.steps()[::-1], logger))
        return None if step is None else self.at(step)

    def first_valid(self, steps: Iterable[int], logger: Logger) -> int | None:
        """Finds the first valid checkpoint of some. Files are read even if they were before.

        Args:
          steps: Steps of checkpoints.
          logger: Receives a message for each corrupt checkpoint that is skipped.

        Returns:
          The step of the checkpoint; None if no one is valid.

        Raises:
          CheckpointDeletedError: One of them was deleted meanwhile. Their list is out of date.
        """
        for step in steps:
            problem = self.problem(step)
            if problem is None:
                return step
            logger.info(
                f"Skipping checkpoint {self.at(step)}, which is corrupt: {problem}. It stays as it "
                "is; the next one is tried."
            )
        return None

    def delete(self, step: int) -> None:
        """Deletes a checkpoint. It vanishes as a whole, so that no incomplete one has its name.

        Args:
          step: The step of the checkpoint. It may be missing.

        Raises:
          OSError: The directory holds files that were not saved with the checkpoint, or it can't be
            renamed.
        """
        path = self.at(step)
        if not path.exists():
            return
        if unlisted := unlisted_files(path):
            message = f"it holds {', '.join(unlisted)}, which tfloss did not write there"
            raise OSError(errno.ENOTEMPTY, message, str(path))
        delete(path)

    def write(
        self, step: int, write_files: Callable[[Path], None], manifest: Mapping[str, Any]
    ) -> Path:
        """Writes a checkpoint: all files to another directory and to the disk, then one rename.

        A valid checkpoint of the same step is replaced; files that somebody else put into it are
        copied into the new one. A corrupt one is renamed to `damaged_00000100` and stays.

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
        target = self._target(step)
        try:
            _make_directory(self.path)
            with replacement(target) as new:
                new.path.mkdir()
                write_files(new.path)
                write_manifest(new.path, {"step": step, **manifest})
                if os.path.lexists(target):
                    self._keep_foreign(step, new.path)
                new.commit()
        except OSError as error:
            raise CheckpointWriteError(self._write_error(target, error)) from error
        self._problems[step] = None
        return target

    def _target(self, step: int) -> Path:
        return self.path / f"step_{step:08d}"

    def _keep_foreign(self, step: int, new: Path) -> None:
        """Keeps what is not a valid checkpoint's own where the checkpoint of a step is replaced."""
        target = self._target(step)
        if self.problem(step) is not None:
            taken = {path.name for path in self.path.iterdir()}
            os.replace(target, self.path / unique_name(f"{_CORRUPT}{step:08d}", taken))
            return
        for name in unlisted_files(target):
            if (target / name).is_dir():
                shutil.copytree(target / name, new / name, symlinks=True)
            else:
                shutil.copy2(target / name, new / name, follow_symlinks=False)

    def _write_error(self, target: Path, error: OSError) -> str:
        """Describes what happened, the free disk space and the newest valid checkpoint."""
        reason = error.strerror or str(error)
        if error.filename and Path(error.filename) != target:
            reason += f" ({error.filename})"
        existing = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        free = shutil.disk_usage(existing).free
        newest = "There is no valid checkpoint"
        with contextlib.suppress(CheckpointError):
            if steps := self.valid_steps():
                newest = f"The newest valid checkpoint is {self.at(steps[-1])}"
        return (
            f"The checkpoint {target} can't be written: {reason}. The disk has "
            f"{free / 1e6:,.1f} MB left. {newest}."
        )


def _names(directory: Path) -> list[str]:
    """What is in a directory; nothing if it is missing. Raises CheckpointError."""
    try:
        check_directory(directory, write=False)
        return os.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        reason = str(error) if isinstance(error, WorkdirError) else f"{directory}: {error}"
        raise CheckpointError(f"The checkpoints can't be listed. {reason}") from None


def _make_directory(path: Path) -> None:
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        sync(path.parent)


def supersede_later(files: CheckpointFiles, step: int) -> list[Path]:
    """Renames all checkpoints after a step to `superseded_00000200`, valid or corrupt.

    They are no longer listed, nor deleted or resumed from.

    Args:
      files: The directory of the checkpoints.
      step: The step to which training has gone back.

    Returns:
      The new directories.

    Raises:
      OSError: A checkpoint can't be renamed.
    """
    renamed: list[Path] = []
    for later in [one for one in files.steps() if one > step]:
        taken = {path.name for path in files.path.iterdir()}
        aside = files.path / unique_name(f"{_SUPERSEDED}{later:08d}", taken)
        os.replace(files.at(later), aside)
        renamed.append(aside)
    return renamed
