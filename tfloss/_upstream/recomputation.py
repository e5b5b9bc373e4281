"""Random numbers of rematerialised blocks: the backward pass draws what the forward pass drew.

`tf.recompute_grad`, which `keras.remat` and `keras.RematScope` use, runs a block again in the
backward pass. The block then draws new random numbers: the gradient is that of another Dropout mask
than the loss. Neither function takes the seeds of the forward pass.
"""

# This package is the place for private attributes.
# pyright: reportPrivateUsage=false

import contextlib
import dataclasses
import sys
import threading
from collections.abc import Callable, Generator
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.ops import custom_gradient

from tfloss._upstream.op_kinds import op_state
from tfloss._upstream.patching import replaced
from tfloss._upstream.traced_graphs import called_functions, called_graph
from tfloss.errors import ModelError

_RECOMPUTING = "inner_recompute_grad"  # the function of TensorFlow that runs the block again


@dataclasses.dataclass
class _Seeds:
    """The seeds that one call of a block has drawn, in order.

    Attributes:
      drawn: Generators and their seeds.
      recorded: Whether the block has run once.
      position: Index of the next seed that is drawn again; None while the seeds are recorded.
    """

    drawn: list[tuple[keras.random.SeedGenerator, Any]] = dataclasses.field(default_factory=list)
    recorded: bool = False
    position: int | None = None

    def again(self, generator: keras.random.SeedGenerator) -> Any:
        """Returns the seed that the forward pass drew at this place."""
        assert self.position is not None
        known = self.drawn[self.position : self.position + 1]
        self.position += 1
        if not known or known[0][0] is not generator:
            raise ModelError(
                f"A rematerialised block draws from {generator.name!r} in the backward pass, where "
                "the forward pass drew from another generator or from none. Make the block do the "
                "same in both runs."
            )
        seed = known[0][1]
        if not tf.executing_eagerly() and not _within_reach(seed):
            raise ModelError(
                f"A rematerialised block draws from {generator.name!r} inside a tf.cond, "
                "tf.while_loop or nested tf.function, so that the backward pass can't draw the "
                "same random numbers again. Draw them outside of it."
            )
        return seed


_local = threading.local()  # replicas are traced in threads of their own


@contextlib.contextmanager
def repeated_seeds(active: Callable[[], bool]) -> Generator[None]:
    """Makes rematerialised blocks draw the seeds of their forward pass again.

    Args:
      active: Returns whether the current thread traces a pass of tfloss.

    Yields:
      None.
    """

    def make_recompute_grad(original: Any) -> Any:
        def recompute_grad(f: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                if not active():
                    return original(f)(*args, **kwargs)
                seeds, options = _Seeds(), dict[str, Any]()
                if not any(tf.is_tensor(x) for x in tf.nest.flatten(kwargs)):
                    # In a graph the original takes no keywords, such as Keras's `training=True`.
                    kwargs, options = options, kwargs
                return original(lambda *a, **k: _run(f, seeds, a, k | options))(*args, **kwargs)

            return call

        return recompute_grad

    def make_next(original: Any) -> Any:
        def next(self: keras.random.SeedGenerator, ordered: bool = True) -> Any:
            if not active():
                return original(self, ordered)
            return _next(self, lambda: original(self, ordered))

        return next

    with (
        replaced(tf, "recompute_grad", make_recompute_grad),
        replaced(keras.random.SeedGenerator, "next", make_next),
    ):
        yield


def _run(f: Callable[..., Any], seeds: _Seeds, args: Any, kwargs: Any) -> Any:
    """Runs a block: the first time its seeds are recorded, later they are drawn again."""
    seeds.position = 0 if seeds.recorded else None
    stack = _stack()
    graph = tf.compat.v1.get_default_graph()
    before = 0 if tf.executing_eagerly() else len(graph.get_operations())
    stack.append(seeds)
    try:
        result = f(*args, **kwargs)
    finally:
        stack.pop()
        seeds.recorded = True
    if seeds.position is not None and not tf.executing_eagerly():
        _refuse_stateful(graph.get_operations()[before:])
    return result


def _next(generator: keras.random.SeedGenerator, draw: Callable[[], Any]) -> Any:
    """Draws a seed, or the one that the forward pass of an enclosing block drew."""
    stack = _stack()
    repeating = [seeds for seeds in stack if seeds.position is not None]
    recording = [seeds for seeds in stack if seeds.position is None]
    if not repeating and _is_recomputing():
        raise ModelError(
            f"A rematerialised block draws random numbers ({generator.name!r}), and was wrapped "
            "before the training forward, so that the backward pass would draw others. Call "
            "tf.recompute_grad(block) or keras.remat(block) inside of the model's call."
        )
    seed = [seeds.again(generator) for seeds in repeating][0] if repeating else draw()
    for seeds in recording:
        seeds.drawn.append((generator, seed))
    return seed


def _refuse_stateful(ops: list[tf.Operation]) -> None:
    """Refuses random ops with a state of their own, also in branches, loops and functions."""
    todo, seen = [*ops], set[str]()
    while todo:
        op = todo.pop()
        for name in called_functions(op):
            inner = called_graph(op, name)
            if inner is not None and name not in seen:
                seen.add(name)
                todo += inner.get_operations()
        if op_state(op) in ("kernel", "generator"):
            raise ModelError(
                f"A rematerialised block draws random numbers with {op.type} ({op.name!r}). The "
                "backward pass runs it again and would draw others. Draw them outside of the "
                "block, or in it with keras.random and a keras.random.SeedGenerator."
            )


def _within_reach(tensor: tf.Tensor) -> bool:
    """Whether a tensor belongs to the current graph, or to one around it."""
    graph: Any = tf.compat.v1.get_default_graph()
    while graph is not None and graph is not tensor.graph:
        graph = getattr(graph, "outer_graph", None)
    return graph is not None


def _is_recomputing() -> bool:
    """Whether the calling code runs inside TensorFlow's second run of a block."""
    frame = sys._getframe()
    while frame is not None:
        code = frame.f_code
        if code.co_name == _RECOMPUTING and code.co_filename == custom_gradient.__file__:
            return True
        frame = frame.f_back
    return False


def _stack() -> list[_Seeds]:
    if not hasattr(_local, "stack"):
        _local.stack = []
    return _local.stack
