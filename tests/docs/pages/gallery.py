import keras
import numpy as np
import tensorflow as tf
from keras import layers

import tfloss

__all__ = ["boxes", "images", "keras", "layers", "lengths", "np", "pictures", "signals", "texts"]
__all__ += ["tf", "tfloss"]
CAPPED = False
TOLERANCE = 1e-5  # the page states it

rng = np.random.default_rng(0)
images = rng.uniform(-1, 1, size=[24, 8, 8, 1]).astype("float32")
pictures = rng.normal(size=[24, 16, 16, 1]).astype("float32")
corners = rng.uniform(0, 4, size=[24, 2])
boxes = np.concatenate([corners, corners + rng.uniform(1, 4, size=[24, 2])], 1).astype("float32")
signals = rng.normal(size=[24, 16, 3]).astype("float32")
texts = rng.integers(1, 5, size=[24, 4]).astype("int32")
lengths = rng.integers(2, 5, size=[24]).astype("int32")


def check(page):
    """Both programs of a section end with the same weights, and the same averages of them."""
    fitted, trained, trainer = page["fitted"], page["trained"], page["trainer"]
    assert trainer.step >= 3
    network = fitted.network if hasattr(fitted, "average") else fitted
    same(network.trainable_variables, trained.trainable_variables)
    if "unchanged" in page:
        same(page["unchanged"].trainable_variables, trained.trainable_variables)
    if trainer.train_step.averages:
        with trainer.averaged():
            same(fitted.average.trainable_variables, trained.trainable_variables)


def same(one, other):
    """Training has moved the weights (biases start at 0), to the same values."""
    assert len(one) == len(other) > 0
    assert any(variable.name == "bias" for variable in one)
    for first, second in zip(one, other, strict=True):
        assert np.abs(first).max() > 1e-4, first.path
        np.testing.assert_allclose(first, second, rtol=0, atol=TOLERANCE)
