"""What tfloss needs to know about Keras optimizers."""

# This package is the place for private attributes.
# pyright: reportPrivateUsage=false

import contextlib
import functools
from collections.abc import Callable, Generator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfloss._upstream.patching import replaced
from tfloss.errors import ModelError


@contextlib.contextmanager
def gradients_already_reduced(optimizer: keras.optimizers.Optimizer) -> Generator[None]:
    """Makes `optimizer.apply` accept gradients that are already summed over replicas.

    Keras sums them inside `apply`, after its own clipping, which is too late for clipping by the
    norm of the sum. There is no public switch.

    Args:
      optimizer: The optimizer, which may wrap others (`LossScaleOptimizer`).

    Yields:
      None.
    """
    with contextlib.ExitStack() as stack:
        inner: Any = optimizer
        while inner is not None:
            stack.enter_context(replaced(inner, "_all_reduce_sum_gradients", lambda original: list))
            inner = getattr(inner, "inner_optimizer", None)
        yield


# Their weights are computed from slots, which the learning rate is in: half of such an update is
# not an update at half of the rate.
_RATE_IN_SLOTS = (keras.optimizers.Ftrl, keras.optimizers.ScheduleFreeAdamW)
# Without `weight_decay` it does nothing.
_APPLY_WEIGHT_DECAY = keras.optimizers.Optimizer._apply_weight_decay


@contextlib.contextmanager
def scaled_updates(
    optimizer: keras.optimizers.Optimizer, factor: Callable[[Any], float]
) -> Generator[None]:
    """Multiplies what one `optimizer.apply` in the `with` block changes in each variable.

    Weight decay and then the update become `old + factor * (new - old)`, before constraints. For
    these places there is nothing public. A learning rate scaled for each variable would be another
    way, but decay reads it elsewhere, and an optimizer need not use its argument. Only for Keras's
    optimizers with the rate in slots it is the right way.

    Args:
      optimizer: The optimizer, which is applied in replica code, traced.
      factor: Returns the factor of a Keras variable. A variable with factor 1 costs nothing.

    Raises:
      ModelError: The optimizer has an `apply` of its own, which skips these places.
    """
    reached: list[None] = []

    def make_decay(original: Callable[..., None]) -> Callable[..., None]:
        def decay(variables: Any) -> None:
            if has_weight_decay(optimizer):
                _scaled(functools.partial(original, variables), variables, factor)

        return decay

    def make_update(original: Callable[..., None]) -> Callable[..., None]:
        def update(gradients: Any, variables: Any, rate: Any) -> None:
            reached.append(None)
            if not isinstance(optimizer, _RATE_IN_SLOTS):
                change = functools.partial(original, gradients, variables, rate)
                return _scaled(change, variables, factor)
            pairs = list(zip(gradients, variables, strict=True))
            # With a rate of 0, which these divide by, there is no update.
            for each in dict.fromkeys(found for _, v in pairs if (found := factor(v)) > 0.0):
                mine = [(g, v) for g, v in pairs if factor(v) == each]
                original([g for g, _ in mine], [v for _, v in mine], rate * each)

        return update

    with (
        replaced(optimizer, "_apply_weight_decay", make_decay),
        replaced(optimizer, "_backend_update_step", make_update),
    ):
        yield
    if not reached:
        raise ModelError(
            f"rate_multipliers can't be used with {type(optimizer).__name__}: its `apply` doesn't "
            "update the variables as that of keras.optimizers.Optimizer does. Override "
            "`update_step` instead, or give these variables a group of their own."
        )


def _scaled(
    change: Callable[[], None], variables: Sequence[Any], factor: Callable[[Any], float]
) -> None:
    """Changes variables, each by a factor of what `change` would change."""
    pairs = [(v.value if isinstance(v, keras.Variable) else v, factor(v)) for v in variables]
    pairs = [(v, f) for v, f in pairs if f != 1.0]
    before = [tf.identity(v) for v, _ in pairs]
    change()

    def scale(strategy: tf.distribute.Strategy, before: Any) -> None:
        for (variable, each), old in zip(pairs, before, strict=True):
            strategy.extended.update(variable, _interpolate, (old, each), group=False)

    if pairs:  # the same way as Keras updates each replica's copy of a variable
        merge = tf.__internal__.distribute.interim.maybe_merge_call
        merge(scale, tf.distribute.get_strategy(), before)


def _interpolate(variable: tf.Variable, old: tf.Tensor, factor: float) -> None:
    new = tf.convert_to_tensor(variable)
    variable.assign(old + tf.cast(factor, new.dtype) * (new - old))


def has_weight_decay(optimizer: Any) -> bool:
    """Whether an optimizer may decay weights. Some, such as Muon, do it in a way of their own.

    Args:
      optimizer: A Keras optimizer.
    """
    own = type(optimizer)._apply_weight_decay
    return optimizer.weight_decay is not None or own is not _APPLY_WEIGHT_DECAY


def exclude_from_weight_decay(optimizer: Any, variables: list[Any]) -> None:
    """Excludes variables from weight decay, besides those that are excluded already.

    The public method of this name forgets what was excluded before, and refuses an optimizer that
    is built, for example by an earlier trainer.

    Args:
      optimizer: A Keras optimizer.
      variables: The variables.
    """
    before = getattr(optimizer, "_exclude_from_weight_decay", ())
    keys = {optimizer._var_key(variable) for variable in variables}
    optimizer._exclude_from_weight_decay = keys | set(before)
    optimizer._exclude_from_weight_decay_cache = {}


def optimizer_built_for(optimizer: Any) -> list[Any]:
    """Returns the variables an optimizer was built for, in its order; empty if unknown.

    Only the private `_trainable_variables` tells. The model's trainable variables differ once a
    layer is frozen, or if there are several optimizers.
    """
    return list(getattr(optimizer, "_trainable_variables", ()))


def optimizer_slots(optimizer: Any) -> dict[int, tuple[str, Any]]:
    """Returns `{id(slot): (attribute that holds it, variable it belongs to or None)}`.

    Names do not suffice: Adafactor's slots have only the last part of a path (`kernel`), and the
    slots of `a/b` and `a_b` have the same name. But every Keras optimizer keeps its slots in lists
    with one entry (or None) for each variable, in the order of the variables it was built for.
    That order is not documented.
    """
    built_for = optimizer_built_for(optimizer)
    found: dict[int, tuple[str, Any]] = {}
    for attribute, value in vars(optimizer).items():
        if attribute in ("_variables", "_trainable_variables"):
            continue
        if isinstance(value, keras.Variable):
            found.setdefault(id(value), (attribute, None))
        elif isinstance(value, list) and len(value) == len(built_for):
            for variable, slot in zip(built_for, value, strict=True):
                if isinstance(slot, keras.Variable):
                    found[id(slot)] = (attribute, variable)
    return found


def adam_moments(optimizer: keras.optimizers.Adam, variable: tf.Variable) -> tuple[Any, Any]:
    """Returns the `tf.Variable`s of a variable's first and second moment.

    They are in `optimizer.variables` (public), but in an order that is not documented.
    """
    index = optimizer._get_variable_index(variable)
    return optimizer._momentums[index].value, optimizer._velocities[index].value


def extend_optimizer(optimizer: keras.optimizers.Optimizer, variables: list[Any]) -> None:
    """Rebuilds an optimizer for additional variables; existing slots keep their values.

    Keras builds an optimizer once, so a layer that is unfrozen later gets no slots and can't be
    trained. `built` is public; the lists of the variables built for, and of the slots, are not.

    Args:
      optimizer: A built optimizer.
      variables: The variables it should be built for. Those it has already are ignored.
    """
    slots = optimizer_slots(optimizer)
    built_for = optimizer_built_for(optimizer)
    known = {id(v) for v in built_for}
    values = {
        (attribute, id(variable)): slot
        for slot in optimizer.variables
        for attribute, variable in [slots.get(id(slot), ("", None))]
        if variable is not None
    }
    others = {k: v for k, v in vars(optimizer).items() if isinstance(v, keras.Variable)}
    old_slots = {id(slot) for slot in values.values()}
    for slot in [v for v in optimizer._variables if id(v) in old_slots]:
        optimizer._untrack_variable(slot)
    optimizer._trainable_variables_indices = {}
    optimizer.built = False
    optimizer.build(built_for + [v for v in variables if id(v) not in known])
    slots = optimizer_slots(optimizer)
    for slot in optimizer.variables:
        attribute, variable = slots.get(id(slot), ("", None))
        if (attribute, id(variable)) in values:
            slot.assign(values[attribute, id(variable)])
    # Some optimizers replace other variables in `build`, such as Nadam its product of momenta.
    for attribute, variable in others.items():
        if (new := getattr(optimizer, attribute)) is not variable:
            new.assign(variable)
            optimizer._untrack_variable(variable)


def learning_rate_function(optimizer: keras.optimizers.Optimizer) -> Any:
    """Returns the schedule or function that an optimizer's learning rate comes from, or None.

    `optimizer.learning_rate` is public, but is the value of the function.
    """
    found = optimizer._learning_rate
    return found if callable(found) and not isinstance(found, keras.Variable) else None
