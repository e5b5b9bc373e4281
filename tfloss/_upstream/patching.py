"""Replaces attributes of upstream modules and classes for a while, safely across threads."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Generator
from typing import Any

_MISSING = object()
_lock = threading.Lock()


@dataclasses.dataclass
class _Patch:
    """One replaced attribute: how many threads use it, and the original value."""

    users: int
    original: Any


_patches: dict[tuple[int, str], _Patch] = {}  # by id of the owner and attribute


@contextlib.contextmanager
def replaced(owner: Any, attribute: str, make: Callable[[Any], Any]) -> Generator[None]:
    """Replaces `owner.attribute` while at least one thread is inside the context.

    Replicas of a MirroredStrategy are traced in threads that interleave. So the first thread in
    replaces the attribute, and the last one out restores it.

    Args:
      owner: Module, class or object that has the attribute.
      attribute: Name of the attribute.
      make: Function from the original value to the new value.

    Yields:
      None.
    """
    key = (id(owner), attribute)
    with _lock:
        patch = _patches.get(key)
        if patch is None:
            original = vars(owner).get(attribute, _MISSING)
            patch = _patches[key] = _Patch(0, original)
            setattr(owner, attribute, make(getattr(owner, attribute)))
        patch.users += 1
    try:
        yield
    finally:
        with _lock:
            patch.users -= 1
            if patch.users == 0:
                del _patches[key]
                if patch.original is _MISSING:
                    delattr(owner, attribute)
                else:
                    setattr(owner, attribute, patch.original)
