"""A name for every variable of a model and of an optimizer: unique, and the same in every run.

Names follow from paths, never from positions, so that a layer put in between moves nothing.
Host code.
"""

import re
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from tfloss import _upstream
from tfloss.common.unique_names import unique_name


def named_variables(model: keras.Model) -> dict[str, Any]:
    """Every variable of a model by its path: weights, statistics, seeds, metrics, tf.Variables.

    Layers may be held in attributes, lists, dicts, tuples, however nested. A seed generator is
    named after the layer that owns it; a raw `tf.Variable`, or the state of a
    `tf.random.Generator`, after the layer, the attribute and the keys in it
    (`net/queues/left`). If two variables have one path, the later one gets `#1`.
    """
    owners = {id(state): name for name, state in _upstream.seed_states(model)}
    found: dict[str, Any] = {}
    for variable in [*model.variables, *model.metrics_variables]:
        _add(found, owners.get(id(variable)) or str(variable.path), variable)
    known = {id(variable) for variable in found.values()}
    for name, holder in _raw(model):
        variable = holder.state if isinstance(holder, tf.random.Generator) else holder
        if id(variable) not in known:
            known.add(id(variable))
            _add(found, name, variable)
    return found


def random_states(model: keras.Model) -> set[str]:
    """The names, as `named_variables` has them, of the states of random generators."""
    states = {id(state) for _, state in _upstream.seed_states(model)}
    for _, holder in _raw(model):
        if isinstance(holder, tf.random.Generator):
            states.add(id(holder.state))
    return {name for name, variable in named_variables(model).items() if id(variable) in states}


def _raw(model: keras.Model) -> Iterator[tuple[str, Any]]:
    """`(layer path/attribute/keys, tf.Variable or tf.random.Generator)`: Keras tracks neither."""
    for path, layer in _upstream.layers_by_path(model):
        for attribute, value in vars(layer).items():
            if not attribute.startswith("_self_"):  # TensorFlow's own record of the same
                yield from _raw_in(f"{path}/{attribute}", value)


def _raw_in(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Not by `keras.tree`: on an object, Keras has wrappers for tuples that it takes for leaves."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _raw_in(f"{name}/{key}", part)
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _raw_in(f"{name}/{index}", part)
    elif isinstance(value, tf.random.Generator | tf.Variable):
        yield name, value


def named_optimizer_variables(optimizer: keras.optimizers.Optimizer) -> dict[str, Any]:
    """An optimizer's variables: `<path of the variable>/momentum` for slots, else their name.

    `learning_rate` and `iteration` are those that count: of a LossScaleOptimizer, the inner
    optimizer's, beside `loss_scale/dynamic_scale` and so on. What the optimizers of a
    MultiOptimizer each have is `optimizers/0/iteration`, ... The optimizer must be built.
    """
    inner = getattr(optimizer, "inner_optimizer", None)
    inners = getattr(optimizer, "optimizers", [])
    within = {id(v) for one in ([inner] if inner else inners) for v in one.variables}
    own = [v for v in optimizer.variables if id(v) not in within]
    found = dict(named_optimizer_variables(inner)) if inner else {}
    slots = _upstream.optimizer_slots(optimizer)
    built_for = _upstream.optimizer_built_for(optimizer)
    for variable in own:
        name = _slot_name(variable, slots.get(id(variable)), built_for)
        _add(found, f"loss_scale/{name}" if inner else name, variable)
    for index, one in enumerate(inners):
        paths = tuple(f"{variable.path}/" for variable in _upstream.optimizer_built_for(one))
        for name, variable in named_optimizer_variables(one).items():
            slot = bool(paths) and name.startswith(paths)
            _add(found, name if slot else f"optimizers/{index}/{name}", variable)
    return found


def _slot_name(slot: Any, known: tuple[str, Any] | None, built_for: list[Any]) -> str:
    """Keras names a slot `<path with _ for />_momentum`; this finds the path, and what is left.

    Args:
      known: the attribute that holds the slot, and the variable it is for (None if for none).
      built_for: variables to guess from if nothing is known.
    """
    attribute, variable = known or ("", None)
    if variable is None:
        if re.fullmatch(r"variable(_\d+)?", slot.name) and attribute:
            return attribute.strip("_")  # Keras numbers nameless variables through the process
        fitting = [v for v in built_for if slot.name.startswith(_flat(v) + "_")]
        if not fitting:
            return slot.name
        variable = max(fitting, key=lambda v: len(v.path))
    flat = _flat(variable) + "_"
    what = slot.name[len(flat) :] if slot.name.startswith(flat) else attribute.strip("_")
    return f"{variable.path}/{what}"


def _flat(variable: Any) -> str:
    return variable.path.replace("/", "_")


def _add(found: dict[str, Any], name: str, variable: Any) -> None:
    found[unique_name(name, found, "#")] = variable
