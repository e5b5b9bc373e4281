"""The losses that layers add, and what `layer.losses` is inside a training forward.

    return {"loss": mse + sum(self.losses)}      # the regularizers count once, in "loss"

`layer.losses` is a list of added losses and weight regularizers. A forward pass may read it and
put them into a loss that it reports. They then count as a part of that loss, and are not reported
a second time. Replica code, traced.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfloss import _upstream
from tfloss.forward.reachability import reached_tensors


@dataclasses.dataclass(frozen=True)
class AddedLoss:
    """One value passed to `layer.add_loss`. Replica code, traced.

    Attributes:
      layer: Layer whose `add_loss` was called.
      name: Name passed to `tfloss.add_loss`, or None.
      value: The loss, as it was passed.
    """

    layer: keras.Layer
    name: str | None
    value: Any


class LayerLosses:
    """What `layer.losses` returns in one forward pass, and where the values are used."""

    def __init__(self, added: Sequence[AddedLoss]):
        """Creates an object for one forward pass.

        Args:
          added: The list of losses added so far. It grows during the forward pass.
        """
        self._added = added
        self._hidden: set[int] = set()  # ids of added losses that Keras would have cleared
        # By id of an added loss or of a variable: it, and the tensor that was handed out.
        self._read: dict[int, tuple[Any, tf.Tensor]] = {}

    def clear(self, layer: keras.Layer) -> None:
        """Hides the losses of a layer and its sublayers from `layer.losses`.

        Keras does this when a layer is called outside of the call of another one.

        Args:
          layer: The layer.
        """
        if self._added:
            inside = {id(one) for one in _upstream.with_sublayers(layer)}
            self._hidden.update(id(one) for one in self._added if id(one.layer) in inside)

    def is_hidden(self, added: AddedLoss) -> bool:
        """Returns whether an added loss is hidden.

        Args:
          added: The loss.
        """
        return id(added) in self._hidden

    def of(self, layer: keras.Layer) -> list[tf.Tensor]:
        """Returns the value of `layer.losses`: added losses, then regularizers of trained weights.

        A loss that is part of another added loss is left out.

        Args:
          layer: The layer.
        """
        values = [one.value for one in self._added]
        parts = {id(part) for found in self.parts_of(values) for part in found}
        losses = [
            self._handed_out(one, tf.identity(one.value))
            for sublayer in _upstream.with_sublayers(layer)
            for one in self._added
            if one.layer is sublayer and id(one) not in self._hidden | parts
        ]
        for variable in layer.trainable_weights:
            if variable.regularizer is not None and id(variable) not in parts:
                with _upstream.no_autocast():
                    value = variable.regularizer(variable)
                # The dtype that it would have in the call of a layer in half precision.
                value = tf.cast(value, tf.convert_to_tensor(variable).dtype)
                losses.append(self._handed_out(variable, value))
        return losses

    def parts_of(self, values: Iterable[Any]) -> list[list[Any]]:
        """Finds the added losses and variables whose value in `layer.losses` is part of a loss.

        In eager mode every value that was read is taken for a part of each loss.

        Args:
          values: Reported losses.

        Returns:
          For each of the values, the `AddedLoss`es and the regularized variables in it.
        """
        if not self._read:
            return [[] for _ in values]
        if tf.executing_eagerly():
            return [[part for part, _ in self._read.values()] for _ in values]
        handed_out = {tensor.name: part for part, tensor in self._read.values()}
        return [
            [handed_out[name] for name in sorted(reached_tensors(value, handed_out))]
            if isinstance(value, tf.Tensor)
            else []
            for value in values
        ]

    def _handed_out(self, part: Any, tensor: tf.Tensor) -> tf.Tensor:
        """The tensor that stands for an added loss or a regularizer, the same at each read."""
        return self._read.setdefault(id(part), (part, tensor))[1]
