"""The record in an export of what tfloss wrote there. It decides what may be replaced. Host code.

A SavedModel has a folder for further files, `assets.extra`, which no reader loads. The record in it
lists the checksums of all files, so that a file that somebody added or changed is never deleted.
"""

import json
import stat
from pathlib import Path
from typing import Any

from tfloss.common.checksums import first_change, tree_checksums
from tfloss.version import __version__

FILE = "assets.extra/tfloss.json"


def write_record(export: Path) -> None:
    """Writes the record of a complete export.

    Args:
      export: The directory of the export.
    """
    record = export / FILE
    record.parent.mkdir(exist_ok=True)
    content = {"tfloss": __version__, "files": tree_checksums(export)}
    record.write_text(json.dumps(content, indent=1) + "\n")


def foreign_part(path: Path) -> str | None:
    """Finds out whether a path holds exactly what `tfloss.export` wrote there. Reads all of it.

    Args:
      path: The path of an export, which exists.

    Returns:
      None if it does, else what is different, in half a sentence.
    """
    files = _recorded(path / FILE)
    if files is None:
        return f"it has no {FILE}, which every export of tfloss has"
    found = tree_checksums(path)
    del found[FILE]
    return None if found == files else first_change(files, found)


def _recorded(record: Path) -> dict[str, Any] | None:
    try:
        if not stat.S_ISREG(record.lstat().st_mode):
            return None
        content = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    files = content.get("files") if isinstance(content, dict) else None
    return files if isinstance(files, dict) else None
