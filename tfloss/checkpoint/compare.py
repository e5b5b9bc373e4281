"""What changed between two checkpoints, variable by variable. Host code."""

import dataclasses
import math
from pathlib import Path

import numpy as np

from tfloss.checkpoint.directory import load_values
from tfloss.checkpoint.files import CheckpointFiles
from tfloss.checkpoint.listing import table
from tfloss.checkpoint.manifest import load_manifest


@dataclasses.dataclass(frozen=True)
class Changes:
    """How checkpoint `after` differs from `before`.

    Attributes:
      added, removed: names of variables that only one of them has.
      reshaped: `"name ([3] float32 -> [4] float32)"` of those of another shape or dtype.
      changed: `{name: (largest absolute difference, L2 norm of the difference / L2 norm before)}`
        of those of other values, the largest relative change first. Of strings both are infinite.
      same: the number of those that are equal.
    """

    added: list[str]
    removed: list[str]
    reshaped: list[str]
    changed: dict[str, tuple[float, float]]
    same: int


def compare(before: Path, after: Path) -> Changes:
    """Compares two checkpoints. Raises CheckpointError if one is damaged."""
    old, new = (load_manifest(path)["variables"] for path in (before, after))
    both = [name for name in old if name in new]
    alike = [name for name in both if old[name] == new[name]]
    first, second = (load_values(path, alike) for path in (before, after))
    sizes = {name: _difference(first[name], second[name]) for name in alike}
    changed = {name: size for name, size in sizes.items() if size is not None}
    return Changes(
        added=[name for name in new if name not in old],
        removed=[name for name in old if name not in new],
        reshaped=[
            f"{name} ({_described(old[name])} -> {_described(new[name])})"
            for name in both
            if name not in sizes
        ],
        changed=dict(sorted(changed.items(), key=lambda item: -item[1][1])),
        same=len(alike) - len(changed),
    )


def show(files: CheckpointFiles, before: int, after: int) -> None:
    """Prints how two checkpoints differ. Raises CheckpointError if one is damaged."""
    found = compare(files.at(before), files.at(after))
    if found.changed:
        rows = [[k, f"{most:.3g}", f"{norm:.3g}"] for k, (most, norm) in found.changed.items()]
        table(["changed", "largest difference", "relative"], rows)
    for what in ("added", "removed", "reshaped"):
        for name in getattr(found, what):
            print(f"{what}: {name}")
    print(f"{len(found.changed)} changed, {found.same} are equal")


def _difference(before: np.ndarray, after: np.ndarray) -> tuple[float, float] | None:
    """Largest difference and relative norm, None if equal; NaN is equal to NaN."""
    if before.dtype == object:
        return None if np.array_equal(before, after) else (math.inf, math.inf)
    kind = np.complex128 if np.iscomplexobj(before) else np.float64
    first, second = before.astype(kind), after.astype(kind)
    if np.array_equal(first, second, equal_nan=True):
        return None
    difference = np.abs(second - first).ravel()
    norm = np.linalg.norm(first.ravel())
    change = np.linalg.norm(difference)
    return float(difference.max()), float(change / norm) if norm else math.inf


def _described(entry: dict) -> str:
    return f"{entry['shape']} {entry['dtype']}"
