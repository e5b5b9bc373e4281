"""What was written after the checkpoint that a run goes on from, and will be written again.

    keep_until(path, 100, lines=lambda data: ...)

A run that was killed at step 150 and goes on from a checkpoint of step 100 repeats the logs of the
steps between. Left where they are, they would be there twice. Host code, shared by the writers.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from tfloss.common.files import replace_file
from tfloss.common.unique_names import unique_name


def keep_until(
    path: Path, step: int, records: Callable[[bytes], Iterable[tuple[bytes, int]]]
) -> None:
    """Leaves in a file only the records of steps up to `step`, replacing it at once if need be.

    Before the first step nothing is known to be repeated (a checkpoint may have been deleted by
    hand). So then all of it moves aside, to `superseded.<name>`, and nothing is lost.

    Args:
      path: the file; it may be missing.
      step: the one that the run begins after.
      records: splits the file's content into whole records and their steps; what a kill has torn
        off at the end is not among them.
    """
    if not path.exists():
        return
    data = path.read_bytes()
    found = list(records(data))
    kept = b"".join(record for record, at in found if at <= step)
    if kept == data:
        return
    if step == 0 and any(at > 0 for _, at in found):
        os.replace(path, _aside(path))
        return
    replace_file(path, kept)


def _aside(path: Path) -> Path:
    """Where the old file goes; a name that no reader looks for."""
    name = path.name.replace("tfevents", "events")
    taken = {each.name.removesuffix(f".{name}") for each in path.parent.iterdir()}
    return path.with_name(f"{unique_name('superseded', taken, '.')}.{name}")
