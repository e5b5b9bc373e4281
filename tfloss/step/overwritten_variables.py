"""Variables that Keras overwrites with their gradient: scales and maxima of float8 layers. Traced.

A float8 layer scales its tensors by the largest values of the last steps (the "amax history"). It
computes the new history and the new scale in its backward pass, and returns them as the gradients
of variables with `overwrite_with_gradient`. They are no gradients of the objective. So they are not
summed but their maximum is taken, over the uses of a layer, the micro-batches and the replicas.
This is the value of the whole batch, and what Keras does in its own accumulation. They are not
unscaled or clipped, and have no weight decay, slots or moving averages.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfloss import _upstream
from tfloss.errors import ModelError

Indices = dict[str, tuple[int, ...]]
"""`{group: indices of its variables}`."""


def is_overwritten(variable: Any) -> bool:
    """Whether an optimizer overwrites this variable with its gradient.

    Args:
      variable: A Keras variable or `tf.Variable`.
    """
    return getattr(variable, "overwrite_with_gradient", False)


def split_reached(
    variables: Mapping[str, Sequence[Any]], gradients: Mapping[str, Sequence[Any]]
) -> tuple[Indices, Indices]:
    """Finds the variables that a loss reaches.

    Args:
      variables: `{group: variables}`.
      gradients: `{group: gradient or None of each of its variables}`; perhaps of some groups only.

    Returns:
      Those with a gradient of the objective; those that are overwritten.
    """
    trained, overwritten = {}, {}
    for group, mine in gradients.items():
        reached = [i for i, gradient in enumerate(mine) if gradient is not None]
        flags = [is_overwritten(variable) for variable in variables[group]]
        trained[group] = tuple(i for i in reached if not flags[i])
        overwritten[group] = tuple(i for i in reached if flags[i])
    return trained, overwritten


def largest_use(gradient: tf.Tensor, variable: Any) -> tf.Tensor:
    """The value that overwrites a variable. Replica code, traced.

    Args:
      gradient: What a tape gave, the sum over the uses of the variable.
      variable: The variable.

    Returns:
      The elementwise maximum over its uses.

    Raises:
      ModelError: The variable is used in a loop, or twice in a nested function, whose sum can't be
        taken apart.
    """
    terms = _upstream.terms_of_gradient(gradient)
    if terms is None:
        raise ModelError(
            f"Variable {variable.path!r} is overwritten with its gradient, as those of float8 "
            "layers are, and its layer is called in a loop (tf.while_loop, tf.map_fn, an RNN), or "
            "several times in one tf.function. TensorFlow sums the values of all calls there, "
            "which would be wrong. Call the layer outside of the loop or function, on all "
            "elements at once, or give it another dtype."
        )
    return functools.reduce(tf.maximum, terms)
