"""What tfloss needs to know about Keras layers, models and losses."""

# This package is the place for private attributes.
# pyright: reportPrivateUsage=false

import contextlib
from collections.abc import Callable, Generator
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask
from keras.src.backend.common.symbolic_scope import in_symbolic_scope
from keras.src.backend.common.variables import AutocastScope
from keras.src.losses import loss as loss_module
from keras.src.utils.naming import to_snake_case
from keras.src.utils.python_utils import is_default

from tfloss._upstream.patching import replaced


@contextlib.contextmanager
def intercept_add_loss(observe: Callable[[keras.Layer, Any], bool]) -> Generator[None]:
    """Passes every `layer.add_loss(value)` to `observe(layer, value)` first.

    Keras keeps the values in a plain list on the layer that all replica threads share, so any
    synchronisation in the forward pass mixes them, and nothing tells which layer added which. The
    method is public; replacing it on the class during a forward pass is not.

    Args:
      observe: Returns True if it has taken the value. Keras does not see such a value.

    Yields:
      None.
    """

    def make(original: Any) -> Any:
        def add_loss(self: keras.Layer, loss: Any) -> None:
            if not observe(self, loss):
                original(self, loss)

        return add_loss

    with replaced(keras.Layer, "add_loss", make):
        yield


@contextlib.contextmanager
def intercept_losses(read: Callable[[keras.Layer], list[Any] | None]) -> Generator[None]:
    """Replaces the property `layer.losses`, whose list is incomplete while losses are intercepted.

    Replacing a public property on the class is not documented.

    Args:
      read: Returns the losses of a layer. None: Keras's own list.

    Yields:
      None.
    """

    def make(original: Any) -> Any:
        def losses(self: keras.Layer) -> list[Any]:
            found = read(self)
            return original.fget(self) if found is None else found

        return property(losses, doc=original.__doc__)

    with replaced(keras.Layer, "losses", make):
        yield


def automatic_name(named: Any) -> str:
    """Returns the name that Keras gives to a layer, without a number.

    Keras counts these names in each process: `dense`, `dense_1`, ... Nothing public tells the name.
    """
    return to_snake_case(type(named).__name__)


def with_sublayers(layer: keras.Layer) -> list[keras.Layer]:
    """Returns a layer and its sublayers, in the order in which Keras lists their losses.

    `layer.losses` is public, but the order that it has is that of `_flatten_layers`.
    """
    return list(layer._flatten_layers())


@contextlib.contextmanager
def losses_not_divided(applies: Callable[[], bool]) -> Generator[None]:
    """Makes `keras.losses.Loss` return the mean over the examples of its own replica.

    Keras divides it by the number of replicas, for optimizers that sum gradients over them, but
    does not divide `keras.losses.mse` and the like. There is no public switch.

    Args:
      applies: Tells whether the current thread is in a forward pass of tfloss.

    Yields:
      None.
    """

    def make(original: Any) -> Any:
        def scale_loss_for_distribution(value: Any) -> Any:
            return value if applies() else original(value)

        return scale_loss_for_distribution

    with replaced(loss_module, "scale_loss_for_distribution", make):
        yield


@contextlib.contextmanager
def inputs_untouched(model: keras.Model) -> Generator[None]:
    """Passes inputs to calls of `model` itself without casting them to its compute dtype.

    `Model.__call__` casts every float in its arguments, labels included: under mixed_float16 a box
    coordinate of 70000. becomes inf. `autocast=False` is public but also turns off the casting of
    the model's own weights; `_convert_input_args` turns off only this. Sublayers still cast their
    inputs. It also refuses a `tf.experimental.ExtensionType`, as a graph of nodes and edges is one,
    unless `_allow_non_tensor_positional_args` is set.

    Args:
      model: The model.

    Yields:
      None.
    """
    with (
        replaced(model, "_convert_input_args", lambda original: False),
        replaced(model, "_allow_non_tensor_positional_args", lambda original: True),
    ):
        yield


@contextlib.contextmanager
def no_autocast() -> Generator[None]:
    """Shows variables in their own dtype, also inside the call of a layer in half precision.

    Yields:
      None.
    """
    with AutocastScope(None):
        yield


def has_own_build(layer: keras.Layer) -> bool:
    """Returns whether a layer may create variables when it is built.

    Keras marks methods that a layer inherits from its base classes, and wraps `build`.
    """
    return not is_default(layer.build)


def in_scratch_graph() -> bool:
    """Returns whether Keras runs `call` only to infer shapes, in a graph that is not executed.

    Building a subclassed model runs its `call` more than once. `keras.SymbolicScope`, in which
    this happens, is public, but the question whether one is open is not.
    """
    return in_symbolic_scope()


def layers_by_path(
    model: keras.Layer, *, by_parents: bool = False
) -> list[tuple[str, keras.Layer]]:
    """Returns the model and all its layers, nested in lists, dicts and attributes, with paths.

    A layer without variables of its own (Dropout) has no path in Keras; here its path is that of
    its parent and its name. `model.layers` is public but stops at layers that are not models, so
    `_layers` is used.

    Args:
      model: The model.
      by_parents: Whether all paths are made of the names of the parents. Keras's depends on where a
        layer was called first.
    """
    found: dict[int, tuple[str, keras.Layer]] = {}

    def visit(layer: keras.Layer, parent: str) -> None:
        if id(layer) not in found:
            path = f"{parent}/{layer.name}" if parent else layer.name
            path = path if by_parents else layer.path or path
            found[id(layer)] = (path, layer)
            for child in layer._layers:
                visit(child, path)

    visit(model, "")
    return list(found.values())


def made_untrainable(model: keras.Layer) -> set[int]:
    """Returns the ids of variables that were made with `trainable=False`: statistics, counters.

    The public lists also have those of layers that are frozen, perhaps for a while.
    """
    return {
        id(variable)
        for _, layer in layers_by_path(model)
        for variable in layer._non_trainable_variables
    }


def seed_states(model: keras.Layer) -> list[tuple[str, keras.Variable]]:
    """Returns `(layer path/seed_generator, state)` of every `keras.random.SeedGenerator`.

    The states are in `model.variables` (public), but under a path that counts all generators of
    the process. Only `layer._seed_generators` tells which layer owns one.
    """
    return [
        (f"{path}/seed_generator", generator.state)
        for path, layer in layers_by_path(model)
        for generator in layer._seed_generators
    ]


def mask_of(tensor: Any) -> Any:
    """Returns the mask that Keras has attached to a tensor (`Masking`, `mask_zero`), or None.

    Losses and metrics read it there. No public function does, and the mask is lost when the tensor
    leaves a `tf.function` or is concatenated.
    """
    return get_keras_mask(tensor) if tf.is_tensor(tensor) else None


def with_mask(tensor: Any, mask: Any) -> Any:
    """Attaches a mask to a tensor for Keras's losses and metrics, and returns the tensor."""
    if mask is not None:
        set_keras_mask(tensor, mask)
    return tensor


def attached_to(tensor: Any) -> dict[str, tf.Tensor]:
    """Returns what Keras's losses and metrics know of a tensor besides its values.

    This is its mask, and the logits that a softmax or sigmoid was computed of. Keras computes a
    cross-entropy of the logits if it finds them, and otherwise of the probabilities, which it clips
    at 1e-7. It finds the logits in an attribute or by the operation. Both are lost when a tensor
    leaves a `tf.function` or is concatenated.

    Returns:
      "mask", "logits" (of the attribute), "Softmax" or "Sigmoid" (logits of this operation), as far
      as the tensor has them.
    """
    if not tf.is_tensor(tensor):
        return {}
    logits = getattr(tensor, "_keras_logits", None)
    found = {"mask": mask_of(tensor), "logits": logits}
    if logits is None and tf.is_symbolic_tensor(tensor) and tensor.op.type in _PROBABILITIES:
        # A softmax of a vector is over the examples: that of a part or of all parts is another.
        if tensor.op.type == "Sigmoid" or (tensor.shape.rank or 0) > 1:
            found[tensor.op.type] = tensor.op.inputs[0]
    return {name: value for name, value in found.items() if value is not None}


def attach(tensor: Any, attached: dict[str, tf.Tensor]) -> Any:
    """Makes what `attached_to` has returned known to Keras's losses and metrics again.

    Returns:
      The tensor, or one of the same values if Keras looks for the operation. Outside of a
      `tf.function` Keras doesn't look for it.
    """
    for name in _PROBABILITIES.keys() & attached.keys():
        if not tf.executing_eagerly():
            tensor = _PROBABILITIES[name](attached[name])
    if "logits" in attached:
        tensor._keras_logits = attached["logits"]
    return with_mask(tensor, attached.get("mask"))


_PROBABILITIES: dict[str, Callable[[Any], Any]] = {
    "Softmax": tf.nn.softmax,
    "Sigmoid": tf.nn.sigmoid,
}


def weights_with_mask(sample_weight: Any, mask: Any, dtype: str) -> Any:
    """Merges sample weights and a mask as `keras.losses.Loss` does before it reduces its values.

    Args:
      sample_weight: Weights, or None.
      mask: Boolean mask, or None.
      dtype: Dtype of the loss.

    Returns:
      The weights, 0 where the mask is False; None if there are neither weights nor a mask.
    """
    if sample_weight is not None:
        sample_weight = tf.cast(sample_weight, dtype)
    return loss_module.apply_mask(sample_weight, mask, dtype=dtype, reduction="sum")
