"""Checkpoints: named variables, written atomically and checked before they are restored.

    directory = CheckpointDirectory("runs/mine/checkpoints")
    directory.save(100, named_variables(model), extra={"note": "..."})
    directory.restore(directory.latest(), named_variables(model))

A checkpoint is a directory `step_00000100`. It has a TensorFlow tensor bundle, `variables`, whose
keys are the names of the variables (`tf.train.load_checkpoint` reads it), and `manifest.json` with
the step, shapes, dtypes, versions, checksums of all files, and the caller's own entries.

`tfloss/trainer/run_checkpoint.py` composes the checkpoint of a run.
`CheckpointDirectory.save` in `directory.py` reads the variables and writes the tensor bundle,
`CheckpointFiles.write` in `files.py` makes the write atomic, and `manifest.py` adds the checksums.
It is restored in `CheckpointDirectory.restore`: `manifest.py` checks the files, `mismatch.py` the
names and shapes, and `values.py` assigns the values.

Keras's object graph isn't used. It leaves out layers in lists and dicts, keys optimizer slots by
position, and restores what fits without an error. All of this is host code, cross-replica.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfloss.checkpoint.background import BackgroundWriter
    from tfloss.checkpoint.directory import CheckpointDirectory, load_values, versions
    from tfloss.checkpoint.files import CheckpointFiles
    from tfloss.checkpoint.finite import describe_nonfinite, nonfinite_variables
    from tfloss.checkpoint.layer_states import named_layer_states
    from tfloss.checkpoint.manifest import load_file, load_manifest
    from tfloss.checkpoint.mismatch import Mismatch
    from tfloss.checkpoint.names import named_optimizer_variables, named_variables, random_states
    from tfloss.checkpoint.values import assign, read, skip_replica_sync, sync_replicas

# Modules are imported on first use, so that listing the files needs no TensorFlow.
_MODULES = {
    "BackgroundWriter": "background",
    "CheckpointDirectory": "directory",
    "CheckpointFiles": "files",
    "Mismatch": "mismatch",
    "assign": "values",
    "describe_nonfinite": "finite",
    "load_file": "manifest",
    "load_manifest": "manifest",
    "load_values": "directory",
    "named_layer_states": "layer_states",
    "named_optimizer_variables": "names",
    "named_variables": "names",
    "nonfinite_variables": "finite",
    "random_states": "names",
    "read": "values",
    "skip_replica_sync": "values",
    "sync_replicas": "values",
    "versions": "directory",
}

__all__ = [
    "BackgroundWriter",
    "CheckpointDirectory",
    "CheckpointFiles",
    "Mismatch",
    "assign",
    "describe_nonfinite",
    "load_file",
    "load_manifest",
    "load_values",
    "named_layer_states",
    "named_optimizer_variables",
    "named_variables",
    "nonfinite_variables",
    "random_states",
    "read",
    "skip_replica_sync",
    "sync_replicas",
    "versions",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'tfloss.checkpoint' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"tfloss.checkpoint.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
