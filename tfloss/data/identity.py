"""A fingerprint of the batches of a data set, and the difference between two. Host code."""

from collections.abc import Mapping
from typing import Any

from tfloss.common import nested_diff
from tfloss.data import batches


def structure(spec: Any) -> dict[str, str]:
    """Returns the dtype and rank of each tensor of a batch, by its path in the batch.

    All data sets of one trainer must have the same structure.

    Args:
      spec: Nest of `tf.TypeSpec`s of a batch.
    """
    return {path: _describe(leaf) for path, leaf in batches.named_leaves(spec, "batch")}


def _describe(spec: Any) -> str:
    dtype = spec.dtype.name if hasattr(spec, "dtype") else str(spec)
    rank = spec.shape.rank if hasattr(spec, "shape") else "?"
    return f"{dtype} of rank {rank}"


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Returns the differences between two nested dictionaries as `{"key/key": "old -> new"}`.

    Args:
      before: Dictionary with the old values.
      now: Dictionary with the new values.
    """
    changed = nested_diff.differences(before, now)
    return {key: f"{old} -> {new}" for key, (old, new) in changed.items()}
