"""A model whose losses are all added becomes one whose training forward returns nothing else.

model = keras.Model(inputs, outputs)        # a layer of it calls add_loss
trainer = tfloss.Trainer(tfloss.adapters.outputs_ignored(model), optimizer)
"""

from typing import Any

import keras


def outputs_ignored(model: keras.Model) -> keras.Model:
    """Makes a model that reports only what the layers of another model add by `add_loss`.

    A functional model returns its outputs in training too. There, tfloss takes what a model returns
    for losses, and refuses outputs. This adapter leaves them out in training, and returns them in
    inference. Runs on the host.

    Args:
      model: Model that gets the whole batch, as a single input or, for several inputs, as a tuple
        or mapping of them.

    Returns:
      A model for `tfloss.Trainer`, named `outputs_ignored_<name of the model>`. If nothing is added
      in training, its first step raises LossError.
    """
    return _OutputsIgnored(model)


class _OutputsIgnored(keras.Model):
    """A model whose outputs are not losses."""

    def __init__(self, model: keras.Model):
        super().__init__(name=f"outputs_ignored_{model.name}")
        self.predictor = model

    def call(self, batch: Any, training: bool = False) -> Any:
        outputs = self.predictor(batch, training=training)
        return None if training else outputs
