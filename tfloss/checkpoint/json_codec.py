"""Python values as JSON, so that they come back equal and of the same type. Host code.

    text = json.dumps(encode({1: (2, math.nan)}, "state"))
    decode(json.loads(text))                        # {1: (2, nan)}

JSON has no tuples, no keys but strings, no NaN, and none of NumPy's types. A value that JSON has is
left as it is. Every other one becomes `{"$type": name, ...}`. A type that is not known here is
refused: it would come back as something else.
"""

import base64
import collections
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

_TYPE = "$type"
_FACTORIES: dict[str, Any] = {
    one.__name__: one for one in (int, float, bool, str, list, dict, set, tuple)
}
_SEQUENCES: dict[str, Callable[[list[Any]], Any]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": collections.deque,
}
_MAPPINGS: dict[str, Callable[[list[Any]], Any]] = {
    "dict": dict,
    "OrderedDict": collections.OrderedDict,
    "Counter": lambda items: collections.Counter(dict(items)),
}


def encode(value: Any, where: str) -> Any:
    """Converts a value to JSON values.

    Args:
      value: None, bool, int, float, complex, str, bytes, NumPy scalars and arrays; lists, tuples,
        sets, dicts, deques, Counters, OrderedDicts and defaultdicts of these, with any keys.
      where: What the value is, for the message.

    Returns:
      JSON values.

    Raises:
      TypeError: A part of the value has another type. The message names it.
    """
    kind = type(value)
    if value is None or kind in (bool, int, str) or (kind is float and math.isfinite(value)):
        return value
    if kind is list:
        return [encode(one, f"{where}[{i}]") for i, one in enumerate(value)]
    if kind is dict and _TYPE not in value and all(type(key) is str for key in value):
        return {key: encode(one, f"{where}[{key!r}]") for key, one in value.items()}
    return {_TYPE: kind.__name__, **_parts(value, kind, where)}


def _parts(value: Any, kind: type, where: str) -> dict[str, Any]:
    """Returns the JSON values of a value that JSON doesn't have."""
    if kind is float:
        return {"value": str(value)}
    if kind is complex:
        return {"value": [encode(value.real, where), encode(value.imag, where)]}
    if kind is bytes:
        return {"value": base64.b64encode(value).decode()}
    if issubclass(kind, np.generic) or kind is np.ndarray:
        if not value.dtype.hasobject and not value.dtype.names:
            data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
            shape = list(value.shape) if kind is np.ndarray else None
            return {_TYPE: "numpy", "dtype": _dtype_name(value.dtype), "shape": shape, "data": data}
    if kind in (tuple, set, frozenset, collections.deque):
        items = [encode(one, f"{where}[{i}]") for i, one in enumerate(value)]
        if kind in (set, frozenset):
            items.sort(key=repr)  # the same set is saved as the same bytes
        more = {"maxlen": value.maxlen} if kind is collections.deque else {}
        return {"items": items, **more}
    if kind in (dict, collections.OrderedDict, collections.Counter, collections.defaultdict):
        pairs = [
            [encode(key, f"{where}, key {key!r},"), encode(one, f"{where}[{key!r}]")]
            for key, one in value.items()
        ]
        if kind is not collections.defaultdict:
            return {"items": pairs}
        factory = value.default_factory
        name = None if factory is None else factory.__name__
        if factory is None or _FACTORIES.get(str(name)) is factory:
            return {"items": pairs, "factory": name}
    hint = "its .numpy()" if hasattr(value, "numpy") else "numbers, strings and lists instead"
    raise TypeError(
        f"{where} is a {kind.__module__}.{kind.__qualname__}, which a checkpoint can't hold. "
        f"Keep {hint}."
    )


def decode(value: Any) -> Any:
    """Converts what `encode` returned, perhaps after a round trip through JSON.

    Args:
      value: JSON values.

    Returns:
      An equal value of the same types.
    """
    if isinstance(value, list):
        return [decode(one) for one in value]
    if not isinstance(value, Mapping):
        return value
    if _TYPE not in value:
        return {key: decode(one) for key, one in value.items()}
    kind = value[_TYPE]
    if kind == "float":
        return float(value["value"])
    if kind == "complex":
        return complex(*map(decode, value["value"]))
    if kind == "bytes":
        return base64.b64decode(value["value"])
    if kind == "numpy":
        array = np.frombuffer(base64.b64decode(value["data"]), _dtype(value["dtype"]))
        shape = value["shape"]
        return array[0] if shape is None else array.reshape(shape).copy()
    items = [decode(one) for one in value["items"]]
    if kind == "deque":
        return collections.deque(items, value["maxlen"])
    if kind == "defaultdict":
        factory = value["factory"]
        return collections.defaultdict(factory and _FACTORIES[factory], items)
    return (_SEQUENCES.get(kind) or _MAPPINGS[kind])(items)


def _dtype_name(dtype: Any) -> str:
    """The name of a dtype; those that NumPy lacks, such as bfloat16, have no code."""
    return dtype.name if dtype.kind == "V" else dtype.str


def _dtype(name: str) -> Any:
    try:
        return np.dtype(name)
    except TypeError:
        import tensorflow as tf  # it has bfloat16 and the like, which NumPy lacks

        return np.dtype(tf.as_dtype(name).as_numpy_dtype)
