"""The tensors inside a `tf.ExtensionType`."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


def open_extension_type(
    one: Any,
) -> tuple[list[tuple[str, Any]], Callable[[Sequence[Any]], Any]] | None:
    """Returns the tensors of an extension type by field, and a function that packs others.

    `tf.nest.flatten(expand_composites=True)` opens ragged and sparse tensors inside it too, whose
    components can't be sliced. Nothing public opens one level only.

    Args:
      one: Any value or `tf.TypeSpec`.

    Returns:
      `(field, tensor)` of each tensor or composite tensor; of a spec, `(field, spec)`, which can't
      be packed again. A field that holds several has an index: `boxes[1]`. None if `one` is not an
      extension type.
    """
    kinds = tf.experimental.ExtensionType, tf.experimental.ExtensionTypeSpec
    if not isinstance(one, kinds):
        return None
    spec: Any = one if isinstance(one, kinds[1]) else tf.type_spec_from_value(one)
    names: list[str] = []
    for field, value in spec.__dict__.items():
        flat = tf.nest.flatten(value)
        names += [
            field if len(flat) == 1 else f"{field}[{i}]"
            for i, leaf in enumerate(flat)
            if isinstance(leaf, tf.TypeSpec)
        ]
    parts = spec._component_specs if spec is one else spec._to_components(one)
    return list(zip(names, parts, strict=True)), spec._from_components
