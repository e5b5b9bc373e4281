"""What Keras callbacks count, so that it survives a restart. Host code.

Keras's callbacks keep their counts in attributes, which `BackupAndRestore` doesn't save. Here, an
attribute that training has changed since `on_train_begin` is part of the state of the hook.
"""

import contextlib
import warnings
from collections.abc import Mapping
from typing import Any

import keras

from tfloss.checkpoint.json_codec import decode, encode
from tfloss.hooks.callback_checks import is_of_keras

_SET_BY_KERAS = ("params", "model", "_model")


class CallbackState:
    """The attributes of one callback that training changes.

    Args:
      callback: The callback. Its `on_train_begin` has been called.
    """

    def __init__(self, callback: keras.callbacks.Callback):
        self._callback = callback
        self._start = self._encoded()
        self._objects = dict(vars(callback))  # what can't be encoded is compared by identity
        self._warned = False

    def save(self) -> dict[str, Any]:
        """Returns the changed attributes, as JSON values."""
        return {k: v for k, v in self._encoded().items() if self._start.get(k, _NONE) != v}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Sets the attributes that `save` returned."""
        for name, value in saved.items():
            setattr(self._callback, name, decode(value))

    def warn_of_the_rest(self) -> None:
        """Warns once of changed attributes of a custom callback that no checkpoint can hold."""
        kind = type(self._callback)
        if self._warned or is_of_keras(kind):
            return
        lost = [
            f"{kind.__name__}.{name} ({type(value).__name__})"
            for name, value in self._attributes().items()
            if self._objects.get(name, _NONE) is not value and _encoded(value) is _NONE
        ]
        if lost:
            self._warned = True
            warnings.warn(
                f"A checkpoint can't hold {', '.join(lost)}. A resumed run starts without it. Keep "
                "numbers, strings, NumPy arrays, and lists and dicts of them.",
                stacklevel=2,
            )

    def _attributes(self) -> dict[str, Any]:
        found = {k: v for k, v in vars(self._callback).items() if k not in _SET_BY_KERAS}
        if "monitor_op" in found:  # Keras changes the sign of min_delta when it chooses this
            found.pop("min_delta", None)
        return found

    def _encoded(self) -> dict[str, Any]:
        found = {name: _encoded(value) for name, value in self._attributes().items()}
        return {name: value for name, value in found.items() if value is not _NONE}


_NONE = object()


def _encoded(value: Any) -> Any:
    """The value as JSON values; `_NONE` if that is impossible."""
    with contextlib.suppress(TypeError):
        return encode(value, "")
    return _NONE
