"""The model as Keras callbacks expect it: with an optimizer, and `stop_training`. Host code."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import keras


class NamedOptimizer:
    """One of several optimizers, under the name of its group.

    Every other attribute is that of the optimizer, for reading and writing.

    Args:
      name: Name of the group.
      optimizer: The optimizer.
    """

    name: str

    def __init__(self, name: str, optimizer: keras.Optimizer):
        vars(self).update(name=name, optimizer=optimizer)

    def __getattr__(self, attribute: str) -> Any:
        return getattr(vars(self)["optimizer"], attribute)

    def __setattr__(self, attribute: str, value: Any) -> None:
        setattr(vars(self)["optimizer"], attribute, value)


class GroupOptimizers:
    """The optimizers of all groups: callbacks that know several take them from `optimizers`.

    Args:
      optimizers: `{group: optimizer}`.
    """

    def __init__(self, optimizers: Mapping[str, keras.Optimizer]):
        self.optimizers = [NamedOptimizer(name, one) for name, one in optimizers.items()]

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        groups = ", ".join(one.name for one in self.optimizers)
        raise AttributeError(
            f"This model has several optimizers ({groups}), so model.optimizer.{attribute} is not "
            "one value. In the callback, use each of model.optimizer.optimizers."
        )


@contextlib.contextmanager
def callback_attributes(
    model: keras.Model, optimizers: Mapping[str, keras.Optimizer]
) -> Iterator[None]:
    """Inside the `with`, the model has `optimizer` and `stop_training`, as in `fit`.

    They are set past Keras and TensorFlow, which would make the optimizer a part of the model.

    Args:
      model: The model.
      optimizers: `{name: optimizer}` of the training step.
    """
    (one, *others) = optimizers.values()
    new = {"optimizer": GroupOptimizers(optimizers) if others else one, "stop_training": False}
    attributes = model.__dict__
    before = {name: attributes[name] for name in new if name in attributes}
    attributes.update(new)
    try:
        yield
    finally:
        for name in new:
            attributes.pop(name, None)
        attributes.update(before)
