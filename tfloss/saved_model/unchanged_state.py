"""Runs the inference forward of an export without changing the model. Traced or eager.

An RNN with dropout draws its masks in inference too, and doesn't use them. Such draws leave no op
in the graph. All other changes of state, and random numbers that reach an output, are refused.
"""

import contextlib
from collections.abc import Generator
from typing import Any

import keras

from tfloss import _upstream
from tfloss.errors import ExportError
from tfloss.inspect.source_lines import caller_line


@contextlib.contextmanager
def unchanged_state(model: keras.Model, signature: str) -> Generator[None]:
    """Inside the `with`, no variable of Keras changes.

    Args:
      model: The model. One that isn't built is left to Keras, which must create its variables.
      signature: The name of the signature, for the error message.

    Yields:
      None.

    Raises:
      ExportError: The forward pass changes a variable other than a random state.
    """
    if not model.built:
        yield
        return
    with _upstream.OnlySeedsChange(model, caller_line) as scope:
        yield
    if scope.changed:
        path, line = scope.changed[0]
        raise ExportError(
            f"The inference forward (signature {signature!r}) at {line} changes a variable, "
            f"{path!r}, as BatchNormalization does in training, and an RNN with stateful=True "
            "always. Change it only in training, and pass `training` to the layers. For the states "
            "of an RNN, export a model that takes and returns them (initial_state, return_state)."
        )


def check_no_random_outputs(model: keras.Model, signature: str, graph: Any) -> None:
    """Checks that no output of a traced forward pass depends on the state of a seed generator.

    Args:
      model: The model.
      signature: The name of the signature, for the error message.
      graph: The graph of the signature.

    Raises:
      ExportError: An output does.
    """
    seeds: dict[int, str] = {}
    for path, state in _upstream.seed_states(model):
        for one in getattr(state.value, "values", (state.value,)):
            seeds[id(one.handle)] = path
    known = _upstream.captured_handles(graph)
    found, seen = [tensor.op for tensor in graph.outputs], set[str]()
    while found:
        op = found.pop()
        if op.name in seen:
            continue
        seen.add(op.name)
        for tensor in (*op.inputs, *op.outputs):
            if known.get(tensor.name) in seeds:
                path = seeds[known[tensor.name]].rpartition("/")[0]
                raise ExportError(
                    f"The inference forward (signature {signature!r}) draws random numbers from "
                    f"the state of layer {path!r}, and changes a variable by it, as Dropout does "
                    "in training. Draw them only in training, and pass `training` to the layers; "
                    "or use tf.random.stateless_* with a seed that is an input."
                )
        found += [tensor.op for tensor in op.inputs]
