"""Overrides of a config: `--config.key=value`. Host code, without TensorFlow.

ml_collections has overrides too, but none for lists, for None and for keys such as `heads/age`.
"""

import ast
import dataclasses
import enum
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import flags

from tfloss.app.flag_errors import FlagError, unknown_key

_OVERRIDE = re.compile(r"--?(?P<no>no)?config\.(?P<key>[^=]*)(=(?P<text>.*))?", re.DOTALL)
_NEGATIVE = re.compile(r"-\.?\d.*")  # a value, not a flag


@dataclasses.dataclass(frozen=True)
class Override:
    """One override of the command line.

    Attributes:
      flag: The argument as it was written, such as `--config.steps=7`.
      key: The key, such as `steps` or `optimizer.learning_rate`.
      text: The value; None if there is none, as in `--config.smooth`.
    """

    flag: str
    key: str
    text: str | None


def take_overrides(argv: Sequence[str]) -> tuple[list[str], list[Override]]:
    """Takes the overrides out of a command line.

    Args:
      argv: The command line, program name first.

    Returns:
      The other arguments, and the overrides, both in order.
    """
    rest: list[str] = []
    found: list[Override] = []
    arguments = iter(enumerate(argv))
    for index, argument in arguments:
        if argument == "--":
            return [*rest, *argv[index:]], found
        match = _OVERRIDE.fullmatch(argument)
        if not match or not index:
            rest.append(argument)
            continue
        text = match["text"]
        following = argv[index + 1] if index + 1 < len(argv) else "-"
        if text is None and match["no"]:
            text = "false"
        elif text is None and (_NEGATIVE.fullmatch(following) or not following.startswith("-")):
            text = following
            argument = f"{argument}={text}"
            next(arguments)
        found.append(Override(argument, match["key"], text))
    return rest, found


def apply_overrides(config: Any, overrides: Sequence[Override], path: str) -> None:
    """Sets the values of a config. The types of its present values decide how a text is read.

    Args:
      config: The `ConfigDict`. It is changed in place, and may be locked.
      overrides: The overrides. Of two for one key, the last applies.
      path: The file of the config, for messages.

    Raises:
      FlagError: The config has no such key, or the text has another type.
    """
    for one in overrides:
        place = next(_find(config, one.key), None)
        if place is None:
            raise FlagError(unknown_key(one.key, config, path))
        owner, key = place
        kind, present = _kind_and_value(owner, key)
        try:
            value = _parse(one.text, kind, present)
        except ValueError as error:
            raise FlagError(f"{one.flag}: {error}.") from None
        _assign(owner, key, value)


def _find(owner: Any, key: str) -> Iterator[tuple[Any, Any]]:
    """Finds the places that a key names. A name may have dots, slashes and brackets in it."""
    for name in sorted(_names(owner), key=lambda name: -len(str(name))):
        for written in dict.fromkeys((str(name), f"[{name!r}]", f'["{name}"]')):
            if key == written:
                yield owner, name
            elif key.startswith((f"{written}.", f"{written}[")):
                rest = key.removeprefix(written).removeprefix(".")
                yield from _find(_get(owner, name), rest)


def _names(owner: Any) -> list[Any]:
    if hasattr(owner, "keys"):  # a ConfigDict is not a Mapping
        return list(owner.keys())
    if isinstance(owner, list):
        return list(range(len(owner)))
    if dataclasses.is_dataclass(owner):
        return [field.name for field in dataclasses.fields(owner)]
    return []


def _get(owner: Any, name: Any) -> Any:
    return getattr(owner, name) if dataclasses.is_dataclass(owner) else owner[name]


def _kind_and_value(owner: Any, name: Any) -> tuple[type, Any]:
    """The type that a value must have, and the present value."""
    value = _get(owner, name)
    if hasattr(owner, "get_type"):
        return owner.get_type(name), value  # knows the type of a placeholder, which is None
    return type(value), value


def _assign(owner: Any, name: Any, value: Any) -> None:
    if dataclasses.is_dataclass(owner):
        setattr(owner, name, value)
    elif hasattr(owner, "ignore_type"):
        with owner.ignore_type():  # the type is checked, and None replaces any value
            owner[name] = value
    else:
        owner[name] = value


def _parse(text: str | None, kind: type, present: Any) -> Any:
    """Reads a value. Raises ValueError with what was expected, without a full stop."""
    if kind is bool and text is None:
        return True
    if text is None:
        raise ValueError(f"a value is missing, such as ={_example(present)}")
    if kind is str:
        return text
    if text.lower() == "none":
        return None
    if issubclass(kind, enum.Enum):
        return flags.EnumClassParser(kind, case_sensitive=False).parse(text)
    if hasattr(present, "keys") or issubclass(kind, dict):
        return _mapping(text, {} if present is None else present)
    for one, read in _READERS:
        if issubclass(kind, one):
            return read(text, present)
    raise ValueError(
        f"the value of the config is a {kind.__name__}, which can't be given here. Numbers, texts, "
        "booleans, None, and lists, tuples and mappings of these can"
    )


def _boolean(text: str, present: Any) -> bool:
    try:
        return bool(flags.BooleanParser().parse(text))
    except ValueError:
        raise ValueError(f"expected true or false (now {present})") from None


def _integer(text: str, present: Any) -> int:
    try:
        return flags.IntegerParser().convert(text)
    except ValueError:
        raise ValueError(f"expected a whole number (int), such as {_example(present)}") from None


def _float(text: str, present: Any) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"expected a number (float), such as {_example(present)}") from None


def _mapping(text: str, present: Any) -> Any:
    value = _literal(text)
    if not isinstance(value, dict):
        expected = "expected a mapping (dict), such as \"{'name': 1}\", which replaces all of it"
        if not present:
            raise ValueError(expected)
        raise ValueError(
            f"{expected}. To change one value, give --config.KEY.NAME, where NAME is one of: "
            f"{', '.join(map(str, present))}"
        )
    return type(present)(value)


def _list(text: str, present: Any) -> list[Any]:
    """Reads `1,2`, `[1, 2]`, `(1, 2)` or `a,b`. The elements get the type of the present ones."""
    value, inner = _literal(text), text.strip()
    if inner[:1] + inner[-1:] in ("[]", "()"):
        inner = inner[1:-1]
    written = [one.strip() for one in inner.split(",")]
    if not written[-1]:  # of no text, or after a comma at the end
        written.pop()
    if isinstance(value, list | tuple):
        found = list(value)
    else:
        found = [_literal(one) for one in written]
    kinds = {type(one) for one in present or ()}
    kind = next(iter(kinds)) if len(kinds) == 1 else object
    if kind is str and not all(isinstance(one, str) for one in found):
        found = written  # `1e3,2` are two texts
    if kind is float:
        found = [float(one) if type(one) is int else one for one in found]
    if kind in (list, tuple):
        found = [kind(one) if isinstance(one, list | tuple) else one for one in found]
    if kind in (bool, int, float, str, list, tuple) and any(type(one) is not kind for one in found):
        raise ValueError(
            f"expected a {type(present).__name__} of {kind.__name__}, such as {_example(present)}"
        )
    return found


def _tuple(text: str, present: Any) -> tuple[Any, ...]:
    return tuple(_list(text, present))


def _any(text: str, present: Any) -> Any:
    return _literal(text)


_READERS: tuple[tuple[type, Callable[[str, Any], Any]], ...] = (
    (bool, _boolean),
    (int, _integer),
    (float, _float),
    (list, _list),
    (tuple, _tuple),
    (type(None), _any),
)


def _literal(text: str) -> Any:
    """Reads a Python literal. Anything else is a text."""
    words = {"none": None, "true": True, "false": False}
    if text.strip().lower() in words:
        return words[text.strip().lower()]
    try:
        return ast.literal_eval(text.strip())
    except (SyntaxError, ValueError):
        return text


def _example(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or "1,2"
    return "1" if value is None else str(value)
