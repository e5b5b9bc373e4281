"""An export, and the file beside it that says which one it is. Host code.

    export = DescribedExport(Path("runs/digits/export"))
    export.check()                                    # it was written by tfloss, or is missing
    export.replace(write, {"step": 100})              # export/ and export.best.json

The two can't change in one operation. While the export is replaced, the description holds both the
old and the new one, with the checksums of their files: `{"either": [old, new]}`. So it never
describes another export. If the process dies there, the next `check` keeps the right one.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tfloss.common.checksums import first_change, tree_checksums
from tfloss.common.replacement import (
    remove_leftovers,
    replace_file,
    replacement,
    set_aside,
)
from tfloss.errors import ExportError
from tfloss.saved_model.export_record import foreign_part

_EITHER, _FILES = "either", "files"


class DescribedExport:
    """A file or directory that tfloss may replace, because its description proves who wrote it.

    Args:
      path: Path of the export.
    """

    def __init__(self, path: Path):
        self._path, self._file = path, description_file(path)

    def check(self) -> list[dict[str, Any]]:
        """Checks that the export is missing or tfloss wrote it, and cleans up after a kill.

        Returns:
          The description of the export, if there is one.

        Raises:
          ExportError: Somebody else wrote the export or the description, or changed it.
        """
        remove_leftovers(self._path.parent)
        content = self._read()
        if not os.path.lexists(self._path):
            return []
        if content is None:
            if (difference := foreign_part(self._path)) is None:
                return []  # an export of tfloss.export
            raise self._error(f"there is no {self._file.name} beside it, and {difference}")
        found = tree_checksums(self._path)
        described = content.get(_EITHER, [content])
        for one in described:
            if one[_FILES] == found:
                if _EITHER in content:
                    self._describe(one)
                return [one]
        if foreign_part(self._path) is not None:
            raise self._error(first_change(described[-1][_FILES], found))
        return []

    def replace(self, write: Callable[[Path], Any], description: Mapping[str, Any]) -> None:
        """Replaces or creates the export and its description.

        Args:
          write: Writes the export, a file or a directory, to the path that it is given.
          description: JSON values that describe it.

        Raises:
          ExportError: As in `check`. Nothing has changed.
          ValueError: `write` wrote nothing at its path.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with replacement(self._path) as new:
            write(new.path)
            if not os.path.lexists(new.path):
                raise ValueError(
                    f"ExportBest: export(model, path) wrote nothing at its path, {new.path}. It "
                    "must write there; the result is then moved to its final path."
                )
            described = {**description, _FILES: tree_checksums(new.path)}
            self._describe({_EITHER: [*self.check(), described]})
            try:
                new.commit()
            except BaseException:
                self.check()
                raise
        self._describe(described)

    def keep_later(self, step: int) -> None:
        """Renames an export of a later step, which belongs to what was trained before.

        Args:
          step: The step to which training goes back.

        Raises:
          ExportError: As in `check`.
        """
        if any(one.get("step", step) > step for one in self.check()):
            set_aside(self._path)
            set_aside(self._file)

    def _describe(self, content: Mapping[str, Any]) -> None:
        replace_file(self._file, json.dumps(content, indent=2) + "\n")

    def _read(self) -> dict[str, Any] | None:
        """Reads the description, or those that it may be. Without a file there is none."""
        if not os.path.lexists(self._file):
            return None
        try:
            content = json.loads(self._file.read_bytes()) if self._file.is_file() else None
        except (OSError, ValueError, RecursionError):
            content = None
        found = content.get(_EITHER, [content]) if isinstance(content, dict) else None
        if isinstance(found, list) and all(_is_description(one) for one in found):
            return content
        raise ExportError(
            f"ExportBest: {self._file} is not a description that tfloss wrote for the export "
            "beside it, so it is not replaced. Move it away, or use ExportBest(..., path=...)."
        )

    def _error(self, reason: str) -> ExportError:
        return ExportError(
            f"ExportBest: {self._path} is not exactly what tfloss wrote, so it is not replaced: "
            f"{reason}. Move it away, or use ExportBest(..., path=...)."
        )


def description_file(path: Path) -> Path:
    """Returns the path of the file that describes an export.

    Args:
      path: Path of the export.
    """
    return path.with_name(path.name + ".best.json")


def _is_description(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get(_FILES), dict)
