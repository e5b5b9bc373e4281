"""Finds objects that a function or another object can reach: closures, globals, attributes. Host.

dict(find_objects(augment, (np.random.Generator,)))     # {"rng": Generator(PCG64)}
"""

import functools
import types
from collections.abc import Iterator, Mapping
from typing import Any

_MAX_OBJECTS, _MAX_DEPTH, _MAX_ITEMS = 2000, 6, 100
_OPAQUE = (str, bytes, int, float, complex, type, types.ModuleType, types.BuiltinFunctionType)


def find_objects(root: Any, kinds: type | tuple[type, ...]) -> Iterator[tuple[str, Any]]:
    """Walks from an object to what it holds, breadth first, up to a depth and a number.

    A function holds its closure, its defaults and the globals that its code names; other objects
    hold their attributes, and containers their items. Modules and classes are not entered.

    Args:
      root: The function or object.
      kinds: The classes to find. What is found is not entered.

    Yields:
      `(path, object)`, each object once, such as `("self.rng", Generator)`.
    """
    todo: list[tuple[str, Any, int]] = [("", root, 0)]
    seen: set[int] = set()
    alive: list[Any] = []  # so that no id is used again
    while todo and len(seen) < _MAX_OBJECTS:
        path, one, depth = todo.pop(0)
        if isinstance(one, _OPAQUE) or one is None or id(one) in seen:
            continue
        seen.add(id(one))
        alive.append(one)
        if isinstance(one, kinds):
            yield path, one
        elif depth < _MAX_DEPTH:
            todo += [(f"{path}{more}", part, depth + 1) for more, part in _parts(one, path)]


def _parts(one: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yields what an object holds, with the end of its path."""
    dot = "." if path else ""
    if isinstance(one, types.FunctionType):
        yield from ((f"{dot}{name}", value) for name, value in _of_function(one).items())
    elif isinstance(one, types.MethodType):
        yield f"{dot}self", one.__self__
        yield "", one.__func__
    elif isinstance(one, functools.partial):
        yield "", one.func
        yield from ((f"({index})", value) for index, value in enumerate(one.args))
        yield from ((f"{dot}{name}", value) for name, value in one.keywords.items())
    elif isinstance(one, Mapping):
        if len(one) <= _MAX_ITEMS:
            yield from ((f"[{key!r}]", value) for key, value in one.items())
    elif isinstance(one, list | tuple | set | frozenset):
        if len(one) <= _MAX_ITEMS:
            yield from ((f"[{index}]", value) for index, value in enumerate(one))
    else:
        yield from ((f"{dot}{name}", value) for name, value in getattr(one, "__dict__", {}).items())
        call = vars(type(one)).get("__call__")
        if isinstance(call, types.FunctionType):
            yield f"{dot}__call__", call


def _of_function(function: types.FunctionType) -> dict[str, Any]:
    """Returns the closure, the defaults and the named globals of a function."""
    found: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    for code in _codes(function.__code__):
        for name in code.co_names:
            if name in function.__globals__:
                found.setdefault(name, function.__globals__[name])
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return found | {f"default {index}": value for index, value in enumerate(defaults)}


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yields a function's code and that of the functions defined in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)
