"""How Keras builds layers, losses and metrics."""

# This package is the place for private attributes.
# pyright: reportPrivateUsage=false

import contextlib
import functools
from collections.abc import Callable, Generator
from typing import Any

import keras
import tensorflow as tf
from keras.src.layers import layer

from tfloss._upstream.keras_layers import layers_by_path
from tfloss._upstream.patching import replaced


@contextlib.contextmanager
def built_eagerly() -> Generator[None]:
    """Runs `build` methods eagerly, and no `call` only to build, although a function is traced.

    Keras runs `build` where the layer is called. Tensors that it keeps are then tensors of that
    graph, and Keras can't read or copy weights. For a layer without a `build`, Keras traces `call`
    before it calls it, and again in each layer around it: a layer in three others is traced five
    times. Here the call alone builds the layers inside, and the default `build` comes after it.
    Nothing public tells that a layer is about to be built.

    Yields:
      None.
    """
    called: dict[int, tuple[Callable[..., None], Any]] = {}

    def make(original: Any) -> Any:
        def _maybe_build(self: keras.Layer, call_spec: Any) -> None:
            if self.built:
                return
            if getattr(self.build, "_is_default", False):
                called.setdefault(id(self), (original, call_spec))
                return
            with tf.init_scope():
                original(self, call_spec)

        return _maybe_build

    def make_call(original: Any) -> Any:
        @functools.wraps(original)
        def __call__(self: keras.Operation, *args: Any, **kwargs: Any) -> Any:
            outputs = original(self, *args, **kwargs)
            if id(self) in called:
                build, call_spec = called.pop(id(self))
                build(self, call_spec)
            return outputs

        return __call__

    with (
        replaced(keras.Layer, "_maybe_build", make),
        replaced(keras.Operation, "__call__", make_call),
        replaced(layer, "might_have_unbuilt_state", lambda _: lambda _: False),
    ):
        yield


def has_unbuilt_parts(model: keras.Model) -> bool:
    """Returns whether a forward pass might create variables: of layers, losses or metrics.

    `compile` keeps losses and metrics in private attributes, and `Model.metrics` has only those of
    the model itself. Some metrics, such as F1Score, make their variables at the first update.
    """
    for _, one in layers_by_path(model):
        compiled = [getattr(one, f"_compile_{what}", None) for what in ("loss", "metrics")]
        if not one.built or any(part is not None and not part.built for part in compiled):
            return True
        if not all(metric.variables for metric in one._metrics):
            return True
    return False
