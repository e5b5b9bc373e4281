"""Finds plain Python values that traced code reads, and those that have changed since.

    values = PythonValues()
    values.add_function(lambda step: beta["kl"] * step)
    values.add_layers(model)
    ...
    values.changed()                    # [Change("beta", {"kl": 0.1}, {"kl": 0.5})]

Code is traced once, and what it reads from Python then is a constant. Which values these are is
read off the code of the functions: attributes of `self`, variables of closures and globals that
are numbers, strings, or containers of these. Attributes that the code also assigns are left out.
Host code.
"""

import dataclasses
import dis
import functools
import inspect
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfloss import _upstream

_MAX_ITEMS = 100
_BASES = {*keras.Model.__mro__, *keras.Layer.__mro__}
_ABSENT = object()


@dataclasses.dataclass(frozen=True)
class Change:
    """A value that is not what it was.

    Attributes:
      label: What the value is, such as "beta of layer 'net'".
      before: The value when the code was traced.
      now: The value now.
    """

    label: str
    before: Any
    now: Any


@dataclasses.dataclass(frozen=True)
class _Read:
    """One value that code reads: where it is, and a copy of it."""

    label: str
    holder: Mapping[str, Any] | types.CellType
    key: str
    value: Any

    def now(self) -> Any:
        if isinstance(self.holder, types.CellType):
            return _copied(_content(self.holder))
        return _copied(self.holder.get(self.key, _ABSENT))


class PythonValues:
    """Plain Python values that some functions read, as they are when the functions are added."""

    def __init__(self) -> None:
        self._reads: dict[tuple[int, str], _Read] = {}
        self._seen: set[tuple[int, int]] = set()  # code and owner

    def add_layers(self, model: keras.Layer) -> None:
        """Adds the `call` of a model and of all its layers.

        Args:
          model: The model.
        """
        for path, layer in _upstream.layers_by_path(model):
            self._add(type(layer).call, layer, f"layer {path!r}")

    def add_methods(self, owner: Any, names: Iterable[str], label: str) -> None:
        """Adds methods, and the methods that these call.

        Args:
          owner: The object.
          names: Names of the methods. Others are ignored.
          label: What the owner is, for messages.
        """
        for name in names:
            if (method := _method(owner, name)) is not None:
                self._add(method, owner, label)

    def add_function(self, function: Callable[..., Any], label: str = "") -> None:
        """Adds a function, a bound method or a callable object.

        Args:
          function: The function.
          label: What the owner of the method, or the object, is.
        """
        owner = getattr(function, "__self__", None)
        if owner is None and not isinstance(function, types.FunctionType):
            self.add_methods(function, ["__call__", "call"], label or type(function).__name__)
        else:
            self._add(function, owner, label or type(owner).__name__)

    def changed(self) -> list[Change]:
        """Returns the values that have changed since they were added."""
        pairs = [(read, read.now()) for read in self._reads.values()]
        return [
            Change(read.label, read.value, now)
            for read, now in pairs
            if now is not read.value and not _equal(now, read.value)
        ]

    def _add(self, function: Any, owner: Any, label: str) -> None:
        function = inspect.unwrap(function)
        function = getattr(function, "__func__", function)
        code = getattr(function, "__code__", None)
        if code is None or (id(code), id(owner)) in self._seen:
            return
        self._seen.add((id(code), id(owner)))
        attributes, others = _names(code)
        self._add_attributes(owner, attributes, label)
        for name in attributes:
            if (method := _method(owner, name)) is not None:
                self._add(method, owner, label)
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
            self._add_variable(name, cell, _content(cell), attributes)
        for name in others:
            value = function.__globals__.get(name, _ABSENT)
            self._add_variable(name, function.__globals__, value, attributes)

    def _add_variable(self, name: str, holder: Any, value: Any, attributes: Iterable[str]) -> None:
        """Adds a variable of a closure or a global one, or the attributes that are read of it."""
        if _is_plain(value):
            self._keep(holder, name, repr(name))
        elif not isinstance(value, types.ModuleType | type | types.FunctionType):
            self._add_attributes(value, attributes, repr(name))

    def _add_attributes(self, owner: Any, names: Iterable[str], label: str) -> None:
        own = getattr(owner, "__dict__", {})
        for name in names:
            if name in own and _is_plain(own[name]):
                self._keep(own, name, f"{name!r} of {label}")

    def _keep(self, holder: Any, name: str, label: str) -> None:
        read = _Read(label, holder, name, None)
        if (id(holder), name) not in self._reads:
            self._reads[id(holder), name] = dataclasses.replace(read, value=read.now())


def names_read(function: Any) -> list[str]:
    """Returns the names of the attributes that the code of a function reads.

    Args:
      function: A function of Python.
    """
    code = getattr(inspect.unwrap(function), "__code__", None)
    return [] if code is None else _names(code)[0]


@functools.cache
def _names(code: types.CodeType) -> tuple[list[str], list[str]]:
    """The attributes and the global names that code reads and does not assign."""
    loaded: dict[str, None] = {}
    others: dict[str, None] = {}
    stored: set[str] = set()
    todo = [code]
    while todo:
        one = todo.pop()
        todo += [each for each in one.co_consts if isinstance(each, types.CodeType)]
        for instruction in dis.get_instructions(one):
            name = instruction.opname
            if name in ("LOAD_ATTR", "LOAD_METHOD"):
                loaded[instruction.argval] = None
            elif name in ("LOAD_GLOBAL", "LOAD_NAME"):
                others[instruction.argval] = None
            elif name.startswith(("STORE_ATTR", "STORE_GLOBAL")):
                stored.add(instruction.argval)
    return [n for n in loaded if n not in stored], [n for n in others if n not in stored]


def _method(owner: Any, name: str) -> Any:
    """A method of the owner's class, unless it is one that all layers or models have."""
    for base in type(owner).__mro__:
        if name in vars(base):
            member = vars(base)[name]
            member = getattr(member, "__func__", getattr(member, "fget", member))
            return member if base not in _BASES and callable(member) else None
    return None


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return _ABSENT


def _is_plain(value: Any, items: int = _MAX_ITEMS) -> bool:
    """Whether a value is a number, a string or None, or a small container of these."""
    if value is None or isinstance(value, bool | int | float | complex | str | np.generic):
        return True
    if isinstance(value, Mapping):
        return len(value) <= items and all(_is_plain(x, items // 10) for x in value.values())
    if isinstance(value, Sequence):
        return len(value) <= items and all(_is_plain(x, items // 10) for x in value)
    return False


def _copied(value: Any) -> Any:
    """A copy of a plain value, without the containers of Keras."""
    if isinstance(value, Mapping):
        return {key: _copied(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_copied(one) for one in value]
    return value


def _equal(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other or (one != one and other != other))
