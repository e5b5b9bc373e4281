"""Globs of variable paths: `*/bias`, `backbone/*`. Host code.

A glob is compared with the path that Keras gives to a variable, as checkpoints name it
(`net/backbone/dense/kernel`), and with this path without the name of the model in front
(`backbone/dense/kernel`). `*` matches any text, slashes included.
"""

import difflib
import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any

import keras


def matches(glob: str, variable: Any, model: keras.Model) -> bool:
    """Whether a glob matches the path of a variable.

    Args:
      glob: The glob.
      variable: A Keras variable.
      model: The model whose name may be left out.
    """
    path = str(variable.path)
    return any(
        fnmatch.fnmatchcase(one, glob) for one in (path, path.removeprefix(f"{model.name}/"))
    )


def matching(
    glob: str, variables: Sequence[Any], model: keras.Model, owner: str, what: str
) -> list[Any]:
    """Returns the variables that a glob matches.

    Args:
      glob: The glob.
      variables: Keras variables.
      model: The model whose name may be left out.
      owner: What has the glob, for the message: `rate_multipliers['*/bias']`.
      what: What the variables are, for the message: `variable of the model`.

    Raises:
      ValueError: It matches none. The message has the nearest path.
    """
    found = [variable for variable in variables if matches(glob, variable, model)]
    if not found:
        paths = [str(variable.path) for variable in variables]
        raise ValueError(f"{owner} matches no {what}. {_advice(glob, paths)}")
    return found


def _advice(glob: str, paths: Iterable[str]) -> str:
    paths = list(paths)
    if not paths:
        return "There are none."
    # The nearest path is the one whose nearest part resembles the glob most: paths are longer.
    bare = glob.strip("*").strip("/")

    def likeness(path: str) -> float:
        parts = path.split("/")
        size = bare.count("/") + 1
        pieces = ["/".join(parts[i : i + size]) for i in range(len(parts))]
        return max(difflib.SequenceMatcher(None, bare, piece).ratio() for piece in pieces)

    return (
        f"The nearest path is {max(paths, key=likeness)!r}. Write a glob of such a path, with or "
        "without the name of the model in front: '*/bias', 'backbone/*'."
    )
