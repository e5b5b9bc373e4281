"""Checkpoints in a directory: named variables and what belongs to them, saved and restored.

Host code, cross-replica.
"""

import functools
import json
import platform
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfloss.checkpoint.background import BackgroundWriter
from tfloss.checkpoint.files import CheckpointFiles
from tfloss.checkpoint.manifest import MANIFEST, load_manifest
from tfloss.checkpoint.mismatch import Mismatch
from tfloss.checkpoint.values import array, assign, is_accumulator, read_tensor
from tfloss.errors import CheckpointError
from tfloss.version import __version__

_BUNDLE = "variables"


class CheckpointDirectory(CheckpointFiles):
    """Checkpoints of variables, `step_00000100` each. One process writes, any may read.

    Args:
      path: made when the first one is saved.
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
        """Writes a checkpoint and returns its directory. One of the same step is replaced.

        Args:
          step: names it.
          variables: `{name: variable}`.
          extra: anything JSON can hold; `restore` returns it.
          files: `{name: content}` of more files in it; `load_file` returns them.
          background: writes it while the caller goes on: this returns when the values are
            copied. First it waits for the write before, and raises what went wrong there.
          check_finite: refuse to write NaN or infinite weights, statistics and slots. A
            metric's variables and raw tf.Variables may be what they like: the next reset, or
            their owner, knows.
          write: whether this worker writes. All of them read, which may take all.

        Raises:
          CheckpointError: a value is not finite (the first such variable is named), there are
            no variables, or `extra` can't be written as JSON (it says where).
          CheckpointWriteError: it can't be written. Earlier checkpoints are not touched.
          ValueError: one of `files` has a name that is no plain file name, or is taken.
        """
        if not variables:
            raise CheckpointError(
                f"No variables to save at step {step}. Is the model built? Call it on a batch."
            )
        files = dict(files or {})
        _check_names(files)
        if background is not None:
            background.wait()
        values, tensors = {}, {}
        for name, variable in variables.items():
            tensors[name] = read_tensor(variable)  # nobody assigns before this returns
            values[name] = array(tensors[name])
            if background is not None and write:
                tensors[name] = values[name] = background.copy(name, values[name])
        finite = {name for name, variable in variables.items() if _is_state(variable)}
        finite = finite if check_finite else set()
        if not write:
            _check_finite(step, values, finite)
            return self._target(step)
        manifest = _manifest(values, _plain(step, extra or {}))

        def write_it() -> None:
            _check_finite(step, values, finite)
            self.write(step, functools.partial(_fill, tensors=tensors, files=files), manifest)

        if background is None:
            write_it()
        else:
            background.start(write_it)
        return self._target(step)

    def restore(
        self, path: str | Path, variables: Mapping[str, Any], *, ignore: Collection[str] = ()
    ) -> dict[str, Any]:
        """Assigns a checkpoint's values to the variables, all or none.

        Args:
          path: of one checkpoint.
          variables: `{name: variable}`; must have the names, shapes and dtypes of the file.
          ignore: names in the file that need not be restored, such as that of a constant
            learning rate, which is configuration: leave it out of `variables` and put it here.

        Returns:
          The `extra` it was saved with.

        Raises:
          CheckpointError: it lists what is missing, unexpected, of another shape or dtype, or
            says that the files are damaged; nothing was assigned.
        """
        path = Path(path)
        manifest = load_manifest(path)
        saved = {k: v for k, v in manifest["variables"].items() if k not in ignore}
        difference = Mismatch(saved, variables)
        if difference:
            raise CheckpointError(
                f"The checkpoint {path} doesn't fit:\n{difference}\nNothing was restored. "
                + difference.advice()
            )
        values = load_values(path, variables)
        for name, variable in variables.items():
            assign(variable, values[name])
        return manifest["extra"]


def load_values(path: str | Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """`{name: value}` from a checkpoint. Raises CheckpointError if its files are damaged."""
    bundle = Path(path) / _BUNDLE
    try:
        reader = tf.train.load_checkpoint(str(bundle))
        return {name: reader.get_tensor(name) for name in names}
    except Exception as error:  # OpError, IndexError and others, by what is damaged
        raise CheckpointError(
            f"{bundle}.* can't be read, so the checkpoint is damaged ({error}). Nothing was "
            f"restored. To go on from the one before, move {path} away."
        ) from None


def _check_names(files: Mapping[str, bytes]) -> None:
    for name in files:
        taken = name == MANIFEST or name.startswith(f"{_BUNDLE}.")
        if taken or not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(
                f"files={{{name!r}: ...}}: give it a plain file name, other than {MANIFEST} and "
                f"{_BUNDLE}.*, which a checkpoint has itself."
            )


def _is_state(variable: Any) -> bool:
    return isinstance(variable, keras.Variable) and not is_accumulator(variable)


def _check_finite(step: int, values: Mapping[str, np.ndarray], names: Collection[str]) -> None:
    for name, value in values.items():
        if name not in names or not tf.as_dtype(value.dtype).is_floating:
            continue
        if not np.isfinite(value).all():
            raise CheckpointError(
                f"Not saving a checkpoint at step {step}: {name!r} has NaN or infinite "
                "values. The checkpoints before it are as they were."
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


def versions() -> dict[str, str]:
    """Of what a checkpoint is made with."""
    return {
        "tfloss": __version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _plain(step: int, extra: Mapping[str, Any]) -> dict[str, Any]:
    """A copy as JSON gives it back: whoever `extra` is of may change it while it is written."""
    try:
        return json.loads(json.dumps(dict(extra)))
    except (TypeError, ValueError):
        where, value = _not_json("extra", extra)
        raise CheckpointError(
            f"Not saving a checkpoint at step {step}: {where} is a {type(value).__name__}, "
            "which JSON can't hold. Make it a plain int, float, str, list or dict."
        ) from None


def _not_json(where: str, value: Any) -> tuple[str, Any]:
    """The innermost part of a value that makes it impossible to write, and its place."""
    items = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list | tuple):
        items = enumerate(value)
    for key, part in items:
        try:
            json.dumps(part)
        except (TypeError, ValueError):
            return _not_json(f"{where}[{key!r}]", part)
    return where, value


def _fill(folder: Path, *, tensors: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """Writes the files of a checkpoint. Raises OSError if one can't be written."""
    try:
        with tf.device("CPU:0"):  # values that are on the host already go to no GPU
            tf.raw_ops.SaveV2(
                prefix=str(folder / _BUNDLE),
                tensor_names=list(tensors),
                shape_and_slices=[""] * len(tensors),
                tensors=[tf.convert_to_tensor(one) for one in tensors.values()],
            )
    except tf.errors.OpError as error:
        # "{{function_node ...}} /path/of/file; No space left on device [Op:SaveV2]"
        raise OSError(error.message.rpartition("; ")[2].removesuffix(" [Op:SaveV2]")) from None
    for name, content in files.items():
        (folder / name).write_bytes(content)
