"""Which layers of a forward pass run in training mode, where the call of the layer doesn't say."""

# This package is the place for private attributes.
# pyright: reportPrivateUsage=false

import contextlib
import contextvars
import functools
import inspect
import weakref
from collections.abc import Callable, Generator
from typing import Any, Protocol

import keras
from keras.src.backend.common import global_state
from keras.src.backend.common.variables import AutocastScope
from keras.src.layers.layer import CallContext
from keras.src.models import functional

from tfloss._upstream.patching import replaced

_KEY = "current_call_ctx"


class LayerCalls(Protocol):
    """Decides the mode of layer calls, and sees it. Replica code, traced."""

    def enter(self, layer: keras.Layer) -> bool | None:
        """Runs before a layer is called outside of the call of another one.

        Args:
          layer: The layer.

        Returns:
          Whether it is in training mode if its call doesn't say; None leaves it to Keras.
        """
        ...

    def leave(self, layer: keras.Layer, training: bool | None) -> None:
        """Runs after the call of a layer.

        Args:
          layer: The layer.
          training: The mode that it was called in.
        """
        ...


@contextlib.contextmanager
def layer_modes(observer: Callable[[], LayerCalls | None]) -> Generator[None]:
    """Gives every call of a layer its own training mode.

    A layer whose call doesn't say `training=` takes over the mode of the call around it, from a
    context that Keras keeps for each thread. Outside of all calls there is no such context, and
    the layer runs in inference mode. Keras also writes the mode of each call into the context and
    leaves it there: `self.frozen(x, training=False)` turns off the Dropout layers that are called
    after it. Here the mode ends with the call. The context is not public.

    A functional model passes its own mode to all of its layers, also to those that were called
    with `training=False` when the model was built. Here they keep it. Keras also writes down the
    default of a layer's `call` as if it had been given (Dropout: `training=False`), so a value that
    is the default is not kept. The function that passes the mode is not public. A functional
    model that is built inside of a call would keep the mode of that call for ever, so calls with
    symbolic tensors don't see it. A Sequential is never given the modes of its layers, and keeps
    none.

    Args:
      observer: Returns what decides the modes in the current thread. None: nothing changes.

    Yields:
      None.
    """

    def make(original: Any) -> Any:
        @functools.wraps(original)
        def __call__(self: keras.Layer, *args: Any, **kwargs: Any) -> Any:
            calls = observer()
            if calls is None:
                return original(self, *args, **kwargs)
            context: Any = global_state.get_global_attribute(_KEY)
            outermost = context is None
            if outermost:
                context = CallContext(entry_layer=self)
                context.set_value("training", calls.enter(self))
                global_state.set_global_attribute(_KEY, context)
                self._clear_losses()
            before = dict(vars(context))
            if _is_symbolic(args, kwargs):
                context.set_value("training", None)
            elif kwargs.get("training", False) is None and before["training"] is not None:
                kwargs["training"] = before["training"]  # Keras takes an explicit None for False
            try:
                return original(self, *args, **kwargs)
            finally:
                calls.leave(self, context.get_value("training"))
                vars(context).clear()
                vars(context).update(before)
                if outermost:
                    global_state.set_global_attribute(_KEY, None)

        return __call__

    with (
        replaced(keras.Layer, "__call__", make),
        replaced(keras.Sequential, "call", _noting_its_functional_model),
        replaced(functional.Functional, "call", _noting_the_model),
        replaced(functional, "operation_fn", _keeping_given_arguments),
    ):
        yield


@contextlib.contextmanager
def outside_layer_calls() -> Generator[None]:
    """Runs code within the call of a layer as if it were outside of all calls.

    Keras runs `train_step` and `compute_loss` there. Layers that they call begin a context of their
    own, and variables have their own dtype.

    Yields:
      None.
    """
    around = global_state.get_global_attribute(_KEY)
    global_state.set_global_attribute(_KEY, None)
    try:
        with AutocastScope(None):
            yield
    finally:
        global_state.set_global_attribute(_KEY, around)


def _is_symbolic(args: Any, kwargs: Any) -> bool:
    """Whether a layer is called to build a functional model, not to compute something."""
    return any(isinstance(one, keras.KerasTensor) for one in keras.tree.flatten((args, kwargs)))


_OF_SEQUENTIALS: "weakref.WeakSet[Any]" = weakref.WeakSet()
_running: contextvars.ContextVar[Any] = contextvars.ContextVar("functional model", default=None)


def _noting_its_functional_model(original: Any) -> Any:
    """Makes `Sequential.call` note the functional model that it consists of."""

    @functools.wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self._functional is not None:
            _OF_SEQUENTIALS.add(self._functional)
        return original(self, *args, **kwargs)

    return call


def _noting_the_model(original: Any) -> Any:
    """Makes `Functional.call` note the model whose operations run."""

    @functools.wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        token = _running.set(self)
        try:
            return original(self, *args, **kwargs)
        finally:
            _running.reset(token)

    return call


def _keeping_given_arguments(original: Any) -> Any:
    """Makes `operation_fn` keep the arguments that an operation was called with."""

    def operation_fn(operation: Any, **passed_on: Any) -> Any:
        if _running.get() in _OF_SEQUENTIALS:
            return original(operation, **passed_on)

        def call(*args: Any, **kwargs: Any) -> Any:
            missing = {k: v for k, v in passed_on.items() if not _is_given(operation, k, kwargs)}
            return original(operation, **missing)(*args, **kwargs)

        return call

    return operation_fn


def _is_given(operation: Any, name: str, arguments: dict[str, Any]) -> bool:
    """Whether the call that built a functional model gave an argument, other than its default."""
    if arguments.get(name) is None:
        return False
    parameter = inspect.signature(operation.call).parameters.get(name)
    return parameter is None or arguments[name] != parameter.default
