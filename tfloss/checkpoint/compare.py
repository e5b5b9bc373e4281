"""Compares two checkpoints, variable by variable. Host code.

print_changes(find_checkpoints(workdir), 1000, 2000)
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfloss.checkpoint.directory import load_values
from tfloss.checkpoint.files import CheckpointFiles
from tfloss.checkpoint.listing import print_table
from tfloss.checkpoint.manifest import load_manifest


@dataclasses.dataclass(frozen=True)
class Changes:
    """The differences between two checkpoints.

    Attributes:
      added: Names of variables that only the later checkpoint has.
      removed: Names of variables that only the earlier checkpoint has.
      reshaped: `"name ([3] float32 -> [4] float32)"` of variables with another shape or dtype.
      changed: `{name: (largest absolute difference, L2 norm of the difference / L2 norm before)}`
        of variables with other values, the largest relative change first. Both numbers are
        infinite for strings.
      same: The number of variables with equal values.
    """

    added: list[str]
    removed: list[str]
    reshaped: list[str]
    changed: dict[str, tuple[float, float]]
    same: int


def compare(before: Path, after: Path) -> Changes:
    """Compares the variables of two checkpoints.

    Args:
      before: The directory of the earlier checkpoint.
      after: The directory of the later checkpoint.

    Returns:
      The differences.

    Raises:
      CheckpointError: One of the checkpoints is corrupt.
    """
    old, new = (load_manifest(path)["variables"] for path in (before, after))
    common = [name for name in old if name in new]
    comparable = [name for name in common if old[name] == new[name]]
    old_values, new_values = (load_values(path, comparable) for path in (before, after))
    sizes = {name: _difference(old_values[name], new_values[name]) for name in comparable}
    changed = {name: size for name, size in sizes.items() if size is not None}
    return Changes(
        added=[name for name in new if name not in old],
        removed=[name for name in old if name not in new],
        reshaped=[
            f"{name} ({_shape_and_dtype(old[name])} -> {_shape_and_dtype(new[name])})"
            for name in common
            if name not in sizes
        ],
        changed=dict(sorted(changed.items(), key=lambda item: -item[1][1])),
        same=len(comparable) - len(changed),
    )


def print_changes(files: CheckpointFiles, before: int, after: int) -> None:
    """Prints the differences between two checkpoints on standard output.

    Args:
      files: The directory that holds both.
      before: The step of the earlier checkpoint.
      after: The step of the later checkpoint.

    Raises:
      CheckpointError: One of the checkpoints is corrupt.
    """
    changes = compare(files.at(before), files.at(after))
    if changes.changed:
        rows = [
            [name, f"{largest:.3g}", f"{relative:.3g}"]
            for name, (largest, relative) in changes.changed.items()
        ]
        print_table(["changed", "largest difference", "relative"], rows)
    kinds = {"added": changes.added, "removed": changes.removed, "reshaped": changes.reshaped}
    for kind, names in kinds.items():
        for name in names:
            print(f"{kind}: {name}")
    print(f"{len(changes.changed)} changed, {changes.same} are equal")


def _difference(before: np.ndarray, after: np.ndarray) -> tuple[float, float] | None:
    """Computes the largest difference and the relative norm; None if equal. NaN equals NaN."""
    if before.dtype == object:
        return None if np.array_equal(before, after) else (math.inf, math.inf)
    kind = np.complex128 if np.iscomplexobj(before) else np.float64
    old, new = before.astype(kind), after.astype(kind)
    if np.array_equal(old, new, equal_nan=True):
        return None
    difference = np.abs(new - old).ravel()
    norm = np.linalg.norm(old.ravel())
    change = np.linalg.norm(difference)
    return float(difference.max()), float(change / norm) if norm else math.inf


def _shape_and_dtype(entry: Mapping[str, Any]) -> str:
    return f"{entry['shape']} {entry['dtype']}"
