"""A name that nobody has taken yet. Host code, usable at trace time."""

from collections.abc import Container


def unique_name(name: str, taken: Container[str], separator: str = "_") -> str:
    """Returns `name`, or the first of `name_1`, `name_2`, ... that is not taken.

    Args:
      name: The wanted name.
      taken: The names in use; anything that supports `in`.
      separator: The text between the name and its number.

    Returns:
      A name that is not in `taken`.
    """
    unique, number = name, 0
    while unique in taken:
        number += 1
        unique = f"{name}{separator}{number}"
    return unique
