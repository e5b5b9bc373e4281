"""Data and initial weights for the pages on other frameworks: both sides start alike."""

import importlib.util

import keras
import numpy as np
import tensorflow as tf

rng = np.random.default_rng(0)
x = rng.normal(size=[96, 4]).astype("float32")
y = (x[:, 0] * x[:, 1] > 0).astype("int64")


def start(rows: int, columns: int) -> np.ndarray:
    """The initial kernel of every dense layer, in Keras and in PyTorch."""
    values = np.random.default_rng(rows * 100 + columns).normal(size=[rows, columns])
    return (values / np.sqrt(rows)).astype("float32")


keras.initializers.GlorotUniform.__call__ = lambda self, shape, dtype=None: tf.constant(
    start(*shape), dtype
)

if importlib.util.find_spec("torch"):
    import torch

    def reset_parameters(self: torch.nn.Linear) -> None:
        with torch.no_grad():
            self.weight.copy_(torch.from_numpy(start(self.in_features, self.out_features).T))
            self.bias.zero_()

    torch.nn.Linear.reset_parameters = reset_parameters


def assert_equal(first, second, tolerance: float = 0.0) -> None:
    """Two lists of variables, or of PyTorch parameters, have the same values."""
    assert len(first) == len(second) > 0
    for one, other in zip(map(values_of, first), map(values_of, second), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)
        assert np.abs(one).max() > 0


def values_of(variable) -> np.ndarray:
    if hasattr(variable, "detach"):  # of PyTorch, whose kernels are transposed
        return variable.detach().numpy().T
    return variable.numpy()
