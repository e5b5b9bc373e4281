"""A trace of the training forward that computes nothing and creates the variables. Host code.

The forward pass is traced as that of a single replica, so it has a replica context, and can take
gradients of its own weights. Its variables are created outside of the trace, eagerly and in the
strategy's scope. So they have the same initial values on any number of replicas.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfloss import _upstream
from tfloss.errors import ModelError, TflossError
from tfloss.forward.context import plain_forward
from tfloss.step.forward_errors import explained_errors


def dry_run(
    model: keras.Model,
    forward: Callable[[Any], Any],
    element_spec: Any,
    strategy: tf.distribute.Strategy,
) -> None:
    """Traces a training forward once, in a graph that is thrown away. Host code.

    Args:
      model: The model whose variables are created.
      forward: Replica code; takes a replica's batch.
      element_spec: `tf.TypeSpec`s of one replica's batch.
      strategy: The strategy in whose scope the variables are created.

    Raises:
      ModelError: The initial value of a variable depends on the batch.
    """

    def created(next_creator: Callable[..., Any], **options: Any) -> Any:
        options["initial_value"] = _outside(options["initial_value"], options["name"])
        with tf.init_scope(), strategy.scope():
            return next_creator(**options)

    graph = _upstream.function_graph("dry_run")
    with (
        strategy.scope(),
        _upstream.as_single_replica(),
        graph.as_default(),
        tf.variable_creator_scope(created),
        _upstream.built_eagerly(),
        _upstream.inputs_untouched(model),
        plain_forward(True),
    ):
        parts = tf.nest.flatten(element_spec, expand_composites=True)
        inputs = [p and tf.compat.v1.placeholder(p.dtype, p.shape) for p in parts]
        batch = tf.nest.pack_sequence_as(element_spec, inputs, expand_composites=True)
        try:
            with explained_errors(batch):
                forward(batch)
        except Exception as error:
            raise _upstream.find_cause(error, TflossError) from None


def _outside(value: Any, name: str) -> Any:
    """Computes the initial value of a variable outside of the trace."""
    if callable(value):
        # Not while the variable is created: the initializer may create a random generator.
        with tf.init_scope():
            return value()
    if not tf.is_symbolic_tensor(value):
        return value
    found = _upstream.evaluated(value)
    if found is None:
        raise ModelError(
            f"The initial value of variable {name!r} is computed from the batch or from another "
            "variable, when the training forward runs for the first time. Create the variable in "
            "__init__ or build(), or give it an initializer."
        )
    return found
