"""The exports of a run that is killed: what a kill leaves, and what is there in the end."""

import contextlib
import json
from pathlib import Path
from typing import Any

NAMES = ("export", "final")  # of ExportBest; of the script's end


def staging(workdir: Path) -> list[str]:
    """What is being replaced in a workdir, or was when its process was killed."""
    with contextlib.suppress(FileNotFoundError):
        return [path.name for path in workdir.glob(".*.tfloss")]
    return []


def exporting(workdir: Path) -> bool:
    """Whether an export is being written, or was when its process was killed."""
    return any(name.startswith(tuple(f".{one}." for one in NAMES)) for name in staging(workdir))


class KilledExports:
    """Checks the exports in a workdir after each kill: they are the old or the new ones.

    Args:
      workdir: The workdir.
    """

    def __init__(self, workdir: Path):
        self._workdir, self._seen = workdir, set[str]()

    def check(self) -> None:
        """Raises RuntimeError if an export is gone, or is not as it was written."""
        from tfloss.common.checksums import tree_checksums
        from tfloss.saved_model.export_record import foreign_part

        for name in NAMES:
            path = self._workdir / name
            if not path.exists():
                if name in self._seen:
                    raise RuntimeError(f"{path} is gone after a kill.")
                continue
            self._seen.add(name)
            if name == "export":
                content = json.loads(path.with_name("export.best.json").read_bytes())
                described = [one["files"] for one in content.get("either", [content])]
                if tree_checksums(path) not in described:
                    raise RuntimeError(f"{path} is none of those that its description names.")
            elif (problem := foreign_part(path)) is not None:
                raise RuntimeError(f"{path} is not whole after a kill: {problem}")


def contents(workdir: Path) -> dict[str, Any]:
    """The values of the variables in each export, its description, and left-overs of kills."""
    import h5py
    import tensorflow as tf

    found: dict[str, Any] = {"left over": staging(workdir)}
    for name in NAMES:
        bundle = workdir / name / "variables" / "variables"
        if bundle.with_name("variables.index").exists():
            reader = tf.train.load_checkpoint(str(bundle))
            for key in sorted(reader.get_variable_to_shape_map()):
                if key != "_CHECKPOINTABLE_OBJECT_GRAPH":  # TensorFlow's own, with other numbers
                    found[f"{name} {key}"] = reader.get_tensor(key).tobytes()
        weights = workdir / name / "best.weights.h5"
        if weights.exists():

            def add(key: str, item: Any, name: str = name) -> None:
                if isinstance(item, h5py.Dataset):
                    found[f"{name} {key}"] = item[()].tobytes()

            with h5py.File(weights) as file:
                file.visititems(add)
    description = workdir / "export.best.json"
    if description.exists():
        read = json.loads(description.read_bytes())
        found["description"] = {key: value for key, value in read.items() if key != "files"}
    return found
