"""How Keras builds layers, losses and metrics."""

# This package is the place for private attributes.
# pyright: reportPrivateUsage=false

import contextlib
from collections.abc import Generator
from typing import Any

import keras
import tensorflow as tf

from tfloss._upstream.keras_layers import layers_by_path
from tfloss._upstream.patching import replaced


@contextlib.contextmanager
def built_eagerly() -> Generator[None]:
    """Runs `build` methods eagerly, although the layers are called in a traced function.

    Keras calls them where the layer is called. Tensors that `build` keeps are then tensors of that
    graph, and it can't read or copy weights. Nothing public tells that a layer is about to be
    built. The default `build` is left alone: Keras traces `call` for it.

    Yields:
      None.
    """

    def make(original: Any) -> Any:
        def _maybe_build(self: keras.Layer, call_spec: Any) -> None:
            if self.built or getattr(self.build, "_is_default", False):
                original(self, call_spec)
                return
            with tf.init_scope():
                original(self, call_spec)

        return _maybe_build

    with replaced(keras.Layer, "_maybe_build", make):
        yield


def has_unbuilt_parts(model: keras.Model) -> bool:
    """Returns whether a forward pass might create variables: of layers, losses or metrics.

    `compile` keeps losses and metrics in private attributes, and `Model.metrics` has only those of
    the model itself. Some metrics, such as F1Score, make their variables at the first update.
    """
    for _, layer in layers_by_path(model):
        compiled = [getattr(layer, f"_compile_{what}", None) for what in ("loss", "metrics")]
        if not layer.built or any(one is not None and not one.built for one in compiled):
            return True
        if not all(metric.variables for metric in layer._metrics):
            return True
    return False
