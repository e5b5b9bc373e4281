"""Which data they are, as far as it is known, and in what others differ. Host code."""

from collections.abc import Mapping
from typing import Any

from tfloss.common import nested_diff
from tfloss.data import batches


def structure(spec: Any) -> dict[str, str]:
    """`{path in the nest: dtype and rank}` of a batch, which must not change between data sets."""
    flat = batches.leaves(spec, "batch")
    return {
        path: f"{getattr(s, 'dtype', s).name if hasattr(s, 'dtype') else s} of rank "
        f"{s.shape.rank if hasattr(s, 'shape') else '?'}"
        for path, s in flat
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """What differs between two nested dictionaries: `{"key/key": "before -> now"}`."""
    changed = nested_diff.differences(before, now)
    return {key: f"{old} -> {new}" for key, (old, new) in changed.items()}
