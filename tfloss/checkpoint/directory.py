"""Saves variables to a directory of checkpoints, and restores them. Host code, cross-replica.

directory = CheckpointDirectory("runs/mine/checkpoints")
directory.save(100, variables, extra={"note": "..."})
directory.restore(directory.at(100), variables)
"""

import functools
import json
import platform
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfloss.checkpoint.background import BackgroundWriter
from tfloss.checkpoint.files import CheckpointFiles
from tfloss.checkpoint.finite import describe_nonfinite, nonfinite_arrays
from tfloss.checkpoint.layer_states import (
    LAYER_STATE_ADVICE,
    assign_values,
    layer_state_problems,
)
from tfloss.checkpoint.manifest import MANIFEST, deletion_noticed, is_file_name, load_manifest
from tfloss.checkpoint.mismatch import Mismatch
from tfloss.checkpoint.values import ReplicaRows, as_array, is_accumulator, read_tensor
from tfloss.common.files import write_files
from tfloss.errors import CheckpointError
from tfloss.version import __version__

_BUNDLE = "variables"


class CheckpointDirectory(CheckpointFiles):
    """A directory of checkpoints of variables. One process writes, any may read.

    Args:
      path: The directory. It is created with the first checkpoint.
    """

    def save(
        self,
        step: int,
        variables: Mapping[str, Any],
        extra: Mapping[str, Any] | None = None,
        *,
        files: Mapping[str, bytes] | None = None,
        background: BackgroundWriter | None = None,
        check_finite: bool = True,
        write: bool = True,
    ) -> Path:
        """Writes a checkpoint. One of the same step is replaced.

        With several workers all must call it, since reading a variable may be a collective.

        Args:
          step: The step of the checkpoint, which names its directory.
          variables: `{name: variable}`.
          extra: JSON values. `restore` returns them.
          files: `{name: content}` of further files of the checkpoint. `load_file` returns them.
          background: The writer for a write in the background. `save` then returns as soon as the
            values are copied. It waits for the previous write first, and raises its error.
          check_finite: Whether to refuse NaN and infinite weights, statistics and slots, and
            averages of weights. Variables of metrics, which the next reset clears, and other raw
            tf.Variables are not checked.
          write: Whether this worker writes. The others only read the variables.

        Returns:
          The directory of the checkpoint.

        Raises:
          CheckpointError: A value is not finite (the message names the variables), there
            are no variables, or JSON can't hold a part of `extra` (the message names it).
          CheckpointWriteError: The checkpoint can't be written. Earlier ones are not changed.
          ValueError: The name of one of `files` is not a plain file name, or is reserved.
        """
        if not variables:
            raise CheckpointError(
                f"No variables to save at step {step}. Is the model built? Call it on a batch."
            )
        files = dict(files or {})
        _check_file_names(files)
        if background is not None:
            background.wait()
        values: dict[str, np.ndarray] = {}
        tensors: dict[str, Any] = {}
        for name, variable in variables.items():
            tensors[name] = read_tensor(variable)  # no variable is assigned before this returns
            values[name] = as_array(tensors[name])
            if background is not None and write:
                tensors[name] = values[name] = background.copy(name, values[name])
        checked = {name for name, variable in variables.items() if _must_be_finite(name, variable)}
        checked = checked if check_finite else set[str]()
        if not write:
            _check_finite(step, values, checked)
            return self._target(step)
        manifest = _manifest(values, _json_copy(step, extra or {}))

        def check_and_write() -> None:
            _check_finite(step, values, checked)
            write_files = functools.partial(_write_files, tensors=tensors, files=files)
            self.write(step, write_files, manifest)

        if background is None:
            check_and_write()
        else:
            background.start(check_and_write)
        return self._target(step)

    def restore(
        self, path: str | Path, variables: Mapping[str, Any], *, ignore: Collection[str] = ()
    ) -> dict[str, Any]:
        """Assigns the values of a checkpoint to all variables, or to none if it doesn't match.

        Args:
          path: The directory of the checkpoint.
          variables: `{name: variable}`, with the checkpoint's names, shapes and dtypes.
          ignore: Names in the checkpoint that are not restored. An example is a constant learning
            rate, which is configuration: leave it out of `variables` and put its name here.

        Returns:
          The `extra` that the checkpoint was saved with.

        Raises:
          CheckpointError: Names, shapes or dtypes don't match (the message lists them), or the
            checkpoint is corrupt. No variable has been changed.
          CheckpointDeletedError: The checkpoint was deleted or replaced while it was read. No
            variable has been changed.
        """
        path = Path(path)
        with deletion_noticed(path):
            manifest, values = self._read_matching(path, variables, ignore)
        assign_values(variables, values)
        return manifest["extra"]

    def _read_matching(
        self, path: Path, variables: Mapping[str, Any], ignore: Collection[str]
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Reads the manifest, and the values for variables that match those of the checkpoint."""
        manifest = load_manifest(path)
        saved = {k: v for k, v in manifest["variables"].items() if k not in ignore}
        mismatch = Mismatch(saved, variables)
        if mismatch:
            raise CheckpointError(
                f"The checkpoint {path} doesn't match:\n{mismatch}\nNothing was restored. "
                + mismatch.advice()
            )
        values = load_values(path, variables)
        if problems := layer_state_problems(variables, values):
            raise CheckpointError(
                f"The checkpoint {path} doesn't match:\n  {'; '.join(problems.values())}\nNothing "
                f"was restored. {LAYER_STATE_ADVICE}"
            )
        return manifest, values


def load_values(path: str | Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Reads values from a checkpoint.

    Args:
      path: The directory of the checkpoint.
      names: Names of variables in the checkpoint.

    Returns:
      `{name: value}`.

    Raises:
      CheckpointError: The files are corrupt.
      CheckpointDeletedError: The checkpoint was deleted or replaced meanwhile.
    """
    bundle = Path(path) / _BUNDLE
    with deletion_noticed(path):
        try:
            reader = tf.train.load_checkpoint(str(bundle))
            return {name: reader.get_tensor(name) for name in names}
        except Exception as error:  # OpError, IndexError or others, depending on what is corrupt
            raise CheckpointError(
                f"{bundle}.* can't be read, so the checkpoint is corrupt ({error}). Nothing was "
                f"restored. To continue from the checkpoint before it, move {path} away."
            ) from None


def versions() -> dict[str, str]:
    """Returns the versions of tfloss, TensorFlow, Keras, NumPy and Python, by name."""
    return {
        "tfloss": __version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _check_file_names(files: Mapping[str, bytes]) -> None:
    for name in files:
        reserved = name == MANIFEST or name.startswith(f"{_BUNDLE}.")
        if reserved or not is_file_name(name):
            raise ValueError(
                f"files={{{name!r}: ...}}: the name must be a plain file name other than "
                f"{MANIFEST} and {_BUNDLE}.*, which every checkpoint has."
            )


def _must_be_finite(name: str, variable: Any) -> bool:
    if name.startswith("ema/"):  # an average
        return True
    kept = isinstance(variable, keras.Variable | ReplicaRows)
    return kept and not is_accumulator(variable)


def _check_finite(step: int, values: Mapping[str, np.ndarray], names: Collection[str]) -> None:
    bad = nonfinite_arrays({name: value for name, value in values.items() if name in names})
    if bad:
        raise CheckpointError(
            f"Not saving a checkpoint at step {step}: {describe_nonfinite(bad)} Earlier "
            "checkpoints are unchanged."
        )


def _manifest(values: Mapping[str, np.ndarray], extra: dict[str, Any]) -> dict[str, Any]:
    return {
        "variables": {
            name: {"shape": list(value.shape), "dtype": tf.as_dtype(value.dtype).name}
            for name, value in values.items()
        },
        "versions": versions(),
        "extra": extra,
    }


def _json_copy(step: int, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Copies `extra` through JSON, since its owner may change it during a background write."""
    try:
        return json.loads(json.dumps(dict(extra)))
    except (TypeError, ValueError):
        where, value = _not_json("extra", extra)
        raise CheckpointError(
            f"Not saving a checkpoint at step {step}: {where} is a {type(value).__name__}, "
            "which JSON can't hold. Make it a plain int, float, str, list or dict."
        ) from None


def _not_json(where: str, value: Any) -> tuple[str, Any]:
    """Finds the innermost part of a value that JSON can't hold, and its path."""
    items: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list | tuple):
        items = enumerate(value)
    for key, part in items:
        try:
            json.dumps(part)
        except (TypeError, ValueError):
            return _not_json(f"{where}[{key!r}]", part)
    return where, value


def _write_files(
    directory: Path, *, tensors: Mapping[str, Any], files: Mapping[str, bytes]
) -> None:
    """Writes the tensor bundle and the other files. Raises OSError if a write fails."""
    try:
        with tf.device("CPU:0"):  # values that are on the host must not be copied to a GPU
            tf.raw_ops.SaveV2(
                prefix=str(directory / _BUNDLE),
                tensor_names=list(tensors),
                shape_and_slices=[""] * len(tensors),
                tensors=[tf.convert_to_tensor(one) for one in tensors.values()],
            )
    except tf.errors.OpError as error:
        # "{{function_node ...}} /path/of/file; No space left on device [Op:SaveV2]"
        raise OSError(error.message.rpartition("; ")[2].removesuffix(" [Op:SaveV2]")) from None
    write_files(directory, files)
