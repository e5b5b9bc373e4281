"""Keras's numbers in layer names, which count on in a process: `dense`, then `dense_1`. Host code.

A notebook's cell that makes a model a second time gives its layers other numbers. Layers are then
matched with those of a checkpoint by their order within a class.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import keras

from tfloss import _upstream


class Renumbering:
    """The numbers that a checkpoint's names have in place of those of the model's names.

    It is empty unless the layers that have Keras's names are as many in each class as in the
    checkpoint. Whether shapes and the rest of the paths agree is for the caller to check.

    Args:
      model: The model, built.
      here: Names of the model's variables.
      saved: Names of the model's variables in a checkpoint.

    Attributes:
      saved_as: `{name of a layer here: name in the checkpoint}`, where they differ.
    """

    def __init__(self, model: keras.Model, here: Iterable[str], saved: Iterable[str]):
        bases = {_upstream.automatic_name(one) for one in _upstream.with_sublayers(model)}
        ours, theirs = _numbered(here, bases), _numbered(saved, bases)
        self.saved_as: dict[str, str] = {}
        if {base: len(names) for base, names in ours.items()} == {
            base: len(names) for base, names in theirs.items()
        }:
            pairs = (zip(names, theirs[base], strict=True) for base, names in ours.items())
            self.saved_as = {a: b for each in pairs for a, b in each if a != b}

    def in_checkpoint(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Returns variables by the names that they have in the checkpoint.

        Args:
          variables: `{name: variable}`, slots and averages too.
        """
        return {_renamed(name, self.saved_as): one for name, one in variables.items()}

    def here(self, names: Iterable[str]) -> list[str]:
        """Returns the names that variables of the checkpoint have here."""
        back = {saved: ours for ours, saved in self.saved_as.items()}
        return [_renamed(name, back) for name in names]

    def __str__(self) -> str:
        """What was matched, for a message."""
        pairs = [f"{saved} is {ours}" for ours, saved in list(self.saved_as.items())[:3]]
        more = ", ..." if len(self.saved_as) > 3 else ""
        return ", ".join(pairs) + more


def _numbered(names: Iterable[str], bases: set[str]) -> dict[str, list[str]]:
    """Returns, for each automatic name, those that are numbered after it, in Keras's order."""
    found: dict[str, set[tuple[int, str]]] = {}
    parts = {part for name in names for part in name.split("/")[:-1]}
    for part in parts:
        base, _, number = part.rpartition("_")
        if not (base in bases and re.fullmatch("[0-9]+", number)):
            base, number = part, "0"
        if base in bases:
            found.setdefault(base, set()).add((int(number), part))
    return {base: [part for _, part in sorted(each)] for base, each in found.items()}


def _renamed(name: str, parts: Mapping[str, str]) -> str:
    *owners, last = name.split("/")
    return "/".join([*(parts.get(one, one) for one in owners), last])
