"""Checkpoints: named variables, written whole or not at all, checked before they are restored.

    directory = CheckpointDirectory("runs/mine/checkpoints")
    directory.save(100, named_variables(model), extra={"note": "..."})
    directory.restore(directory.latest(), named_variables(model))

A checkpoint is a directory `step_00000100` with a TensorFlow tensor bundle, `variables`, whose
keys are names (`tf.train.load_checkpoint` reads it), and `manifest.json`: step, shapes, dtypes,
versions and what else the caller keeps. Keras's own object graph is not used: it leaves out
layers in lists and dicts, keys optimizer slots by position, and restores by halves. All of this
is host code, cross-replica.
"""

from tfloss.checkpoint.difference import Difference
from tfloss.checkpoint.directory import CheckpointDirectory, load_manifest, load_values
from tfloss.checkpoint.names import named_optimizer_variables, named_variables, random_states
from tfloss.checkpoint.values import assign, read, sync_replicas, synced_by_all

__all__ = [
    "CheckpointDirectory",
    "Difference",
    "assign",
    "load_manifest",
    "load_values",
    "named_optimizer_variables",
    "named_variables",
    "random_states",
    "read",
    "sync_replicas",
    "synced_by_all",
]
