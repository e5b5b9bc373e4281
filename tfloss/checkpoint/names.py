"""Names for all variables of a model and of an optimizer: unique, and the same in each process.

Names follow from paths, never from positions. So a layer that is inserted renames no other
variable. Host code.
"""

import re
from typing import Any

import keras
import tensorflow as tf

from tfloss import _upstream
from tfloss.checkpoint.untracked import untracked, variable_of
from tfloss.checkpoint.values import per_example
from tfloss.common.unique_names import unique_name


def named_variables(model: keras.Model) -> dict[str, Any]:
    """Names all variables of a model: weights, statistics, seeds, metrics, and untracked ones.

    Layers may be held in attributes, lists, dicts and tuples, nested as you like. A variable is
    named by its path. A seed generator is named after the layer that owns it. What Keras doesn't
    track (a raw `tf.Variable`, the state of a `tf.random.Generator` or of a stateful RNN) is named
    after the layer, the attribute and the keys in it: `net/queues/left`. If two variables have the
    same path, the later one gets `#1`. The state of a stateful RNN, of which each replica holds the
    rows of its own examples, is one `ReplicaRows`.

    Args:
      model: A built model.

    Returns:
      `{name: variable}`.
    """
    owners = {id(state): name for name, state in _upstream.seed_states(model)}
    named: dict[str, Any] = {}
    for variable in [*model.variables, *model.metrics_variables]:
        _add(named, owners.get(id(variable)) or str(variable.path), variable)
    known = {id(variable) for variable in named.values()}
    rows = {id(state) for state in _upstream.rnn_states(model)}
    for name, holder in untracked(model):
        variable = variable_of(holder)
        if variable is not None and id(variable) not in known:
            known.add(id(variable))
            _add(named, name, per_example(variable) if id(variable) in rows else variable)
    return named


def random_states(model: keras.Model) -> set[str]:
    """Finds the states of random generators.

    Args:
      model: A built model.

    Returns:
      The names of the states, among those of `named_variables`.
    """
    states = {id(state) for _, state in _upstream.seed_states(model)}
    for _, holder in untracked(model):
        if isinstance(holder, tf.random.Generator):
            states.add(id(holder.state))
    return {name for name, variable in named_variables(model).items() if id(variable) in states}


def named_optimizer_variables(optimizer: keras.optimizers.Optimizer) -> dict[str, Any]:
    """Names all variables of an optimizer: a slot `<path of the variable>/momentum`.

    `learning_rate` and `iteration` are those that the update uses: for a LossScaleOptimizer those
    of the inner optimizer, beside `loss_scale/dynamic_scale` and so on. The optimizers of a
    MultiOptimizer have their own, `optimizers/0/iteration`.

    Args:
      optimizer: A built optimizer.

    Returns:
      `{name: variable}`.
    """
    inner = getattr(optimizer, "inner_optimizer", None)
    parts = getattr(optimizer, "optimizers", [])
    in_parts = {id(v) for part in ([inner] if inner else parts) for v in part.variables}
    own = [v for v in optimizer.variables if id(v) not in in_parts]
    named = dict(named_optimizer_variables(inner)) if inner else {}
    slots = _upstream.optimizer_slots(optimizer)
    built_for = _upstream.optimizer_built_for(optimizer)
    for variable in own:
        name = _slot_name(variable, slots.get(id(variable)), built_for)
        _add(named, f"loss_scale/{name}" if inner else name, variable)
    for index, part in enumerate(parts):
        paths = tuple(f"{variable.path}/" for variable in _upstream.optimizer_built_for(part))
        for name, variable in named_optimizer_variables(part).items():
            is_slot = bool(paths) and name.startswith(paths)
            _add(named, name if is_slot else f"optimizers/{index}/{name}", variable)
    return named


def _slot_name(slot: Any, known: tuple[str, Any] | None, built_for: list[Any]) -> str:
    """Names a slot. Keras calls it `<path with _ for />_momentum`; this restores the path.

    Args:
      slot: The variable of the optimizer.
      known: The attribute that holds the slot, and the variable that it belongs to, or None.
      built_for: The variables to choose from if `known` has none.
    """
    attribute, variable = known or ("", None)
    if variable is None:
        if re.fullmatch(r"variable(_\d+)?", slot.name) and attribute:
            return attribute.strip("_")  # Keras numbers variables without a name in each process
        candidates = [v for v in built_for if slot.name.startswith(_flat_path(v) + "_")]
        if not candidates:
            return slot.name
        variable = max(candidates, key=lambda v: len(v.path))
    prefix = _flat_path(variable) + "_"
    kind = slot.name[len(prefix) :] if slot.name.startswith(prefix) else attribute.strip("_")
    return f"{variable.path}/{kind}"


def _flat_path(variable: Any) -> str:
    return variable.path.replace("/", "_")


def _add(named: dict[str, Any], name: str, variable: Any) -> None:
    named[unique_name(name, named, "#")] = variable
