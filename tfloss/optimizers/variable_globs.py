"""Globs of variable paths: `*/bias`, `backbone/*`. Host code.

A glob is compared with the path that Keras gives to a variable, as checkpoints name it
(`net/backbone/dense/kernel`), and with this path without the name of the model in front
(`backbone/dense/kernel`). `*` matches any text, slashes included.

Keras gives the variables of a functional model, as those of `keras.applications` are, no prefix. So
the name of a model that is a part of the model may stand in front: `backbone/conv/kernel`.
"""

import difflib
import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any

import keras

from tfloss import _upstream


def matches(glob: str, variable: Any, model: keras.Model) -> bool:
    """Whether a glob matches the path of a variable.

    Args:
      glob: The glob.
      variable: A Keras variable.
      model: The model whose name may be left out.
    """
    path = str(variable.path)
    if any(fnmatch.fnmatchcase(one, glob) for one in (path, path.removeprefix(f"{model.name}/"))):
        return True
    return any(
        fnmatch.fnmatchcase(f"{prefix}{part.name}/{path}", glob)
        and not path.startswith(f"{part.name}/")
        and any(one is variable for one in part.variables)
        for _, part in _upstream.layers_by_path(model)
        if isinstance(part, keras.Model) and part is not model
        for prefix in ("", f"{model.name}/")
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
