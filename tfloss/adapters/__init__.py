"""Adapters between models that own their losses and other ways to write a model.

    trainer = tfloss.Trainer(tfloss.adapters.supervised(net, "mse"), optimizer)
    trainer.train(dataset_of_x_y, steps=1_000)

`supervised`, `from_compiled`, `fastai_style`, `lingvo_style` and `outputs_ignored` return a model
that reports its losses. `to_keras` is the way back: a model with `fit` and `evaluate`.
"""

from tfloss.adapters.compiled import from_compiled
from tfloss.adapters.fastai import fastai_style
from tfloss.adapters.lingvo import lingvo_style
from tfloss.adapters.outputs_ignored import outputs_ignored
from tfloss.adapters.supervised import supervised
from tfloss.adapters.to_keras import to_keras

__all__ = [
    "fastai_style",
    "from_compiled",
    "lingvo_style",
    "outputs_ignored",
    "supervised",
    "to_keras",
]
