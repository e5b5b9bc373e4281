"""Checkpoints: named variables, written whole or not at all, checked before they are restored.

    directory = CheckpointDirectory("runs/mine/checkpoints")
    directory.save(100, named_variables(model), extra={"note": "..."})
    directory.restore(directory.latest(), named_variables(model))

A checkpoint is a directory `step_00000100` with a TensorFlow tensor bundle, `variables`, whose
keys are names (`tf.train.load_checkpoint` reads it), and `manifest.json`: step, shapes, dtypes,
versions, checksums of all files and what else the caller keeps. Keras's own object graph is not
used: it leaves out layers in lists and dicts, keys optimizer slots by position, and restores by
halves. All of this is host code, cross-replica.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfloss.checkpoint.background import BackgroundWriter
    from tfloss.checkpoint.directory import CheckpointDirectory, load_values, versions
    from tfloss.checkpoint.files import CheckpointFiles
    from tfloss.checkpoint.manifest import load_file, load_manifest
    from tfloss.checkpoint.mismatch import Mismatch
    from tfloss.checkpoint.names import named_optimizer_variables, named_variables, random_states
    from tfloss.checkpoint.values import assign, read, sync_replicas, synced_by_all

# Imported when first used: files can be looked at without TensorFlow.
_WHERE = {
    "BackgroundWriter": "background",
    "CheckpointDirectory": "directory",
    "CheckpointFiles": "files",
    "Mismatch": "mismatch",
    "assign": "values",
    "load_file": "manifest",
    "load_manifest": "manifest",
    "load_values": "directory",
    "named_optimizer_variables": "names",
    "named_variables": "names",
    "random_states": "names",
    "read": "values",
    "sync_replicas": "values",
    "synced_by_all": "values",
    "versions": "directory",
}

__all__ = [
    "BackgroundWriter",
    "CheckpointDirectory",
    "CheckpointFiles",
    "Mismatch",
    "assign",
    "load_file",
    "load_manifest",
    "load_values",
    "named_optimizer_variables",
    "named_variables",
    "random_states",
    "read",
    "sync_replicas",
    "synced_by_all",
    "versions",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'tfloss.checkpoint' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"tfloss.checkpoint.{_WHERE[name]}"), name)
    globals()[name] = value
    return value
