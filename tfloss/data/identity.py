"""Which data they are, as far as it is known, and in what others differ. Host code."""

from collections.abc import Iterator, Mapping
from typing import Any

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
    old, new = (dict(_flat(one)) for one in (before, now))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return {k: f"{old.get(k, 'absent')} -> {new.get(k, 'absent')}" for k in keys}


def _flat(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in nested.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value
