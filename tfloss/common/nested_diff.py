"""The differences between two nested mappings, such as configs or descriptions of data. Host."""

from collections.abc import Mapping
from typing import Any


def differences(
    before: Mapping[str, Any], after: Mapping[str, Any], separator: str = "/"
) -> dict[str, tuple[Any, Any]]:
    """Compares two nested mappings value by value.

    1, 1.0 and True are equal in Python, and are different values here.

    Args:
      before: The old mapping, with string keys; values may be mappings.
      after: The new mapping.
      separator: The text between the keys of a path.

    Returns:
      `{"key/key": (old, new)}` for each value that differs, in the order of the keys. A value that
      is missing on one side is `ABSENT`.
    """
    old, new = flatten(before, separator), flatten(after, separator)
    found = {}
    for key in dict.fromkeys([*old, *new]):
        pair = (old.get(key, ABSENT), new.get(key, ABSENT))
        if pair[0] != pair[1] or type(pair[0]) is not type(pair[1]):
            found[key] = pair
    return found


def flatten(nested: Mapping[str, Any], separator: str = "/") -> dict[str, Any]:
    """Flattens a nested mapping.

    Args:
      nested: A mapping whose values may be mappings. An empty one counts as a value.
      separator: The text between the keys of a path.

    Returns:
      `{"key/key": value}`, in order.
    """
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            inner = flatten(value, separator)
            flat |= {f"{key}{separator}{path}": each for path, each in inner.items()}
        else:
            flat[str(key)] = value
    return flat


class _Absent:
    """The value on the side that has no such key."""

    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()
