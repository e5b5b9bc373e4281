"""What code inside a model can reach while it is being trained: the forward context.

    with forward_context(step, recording=True) as context:    # replica, traced
        returned = model(batch, training=True)
    context.losses, context.summaries

One context belongs to one replica and one forward pass. It is opened inside the function
given to `strategy.run`, since replicas run in threads of their own where nothing set in the
main thread is visible. Outside of it `tfloss.summary.*` does nothing and `add_loss` is
Keras's own.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from tfloss import _upstream
from tfloss.common.unique_names import unique_name
from tfloss.errors import LossError, SummaryError
from tfloss.forward.recorded_summaries import RecordedSummary
from tfloss.inspect.source_lines import caller_line


@dataclasses.dataclass(frozen=True)
class AddedLoss:
    """One value given to `layer.add_loss`, with the name given by `tfloss.add_loss` or None."""

    layer: keras.Layer
    name: str | None
    value: Any


class ForwardContext:
    """The losses and summaries of one replica's forward pass, and its step.

    share: what this forward pass counts in the objective, its fraction of the examples of the
      step; the shares of all replicas and micro-batches sum to 1.
    normalisers: how `global_mean` finds its global sums here; None: by reducing over replicas.
    """

    def __init__(
        self,
        step: tf.Tensor,
        recording: bool,
        share: "float | tf.Tensor" = 1.0,
        normalisers: Any = None,
    ):
        self.step = step
        self.recording = recording
        self.share = share
        self.normalisers = normalisers
        self.losses: list[AddedLoss] = []
        self.summaries: dict[str, RecordedSummary] = {}
        self.prefixes: list[str] = []
        self.pending_name: str | None = None
        self.collecting = True
        self._graph = _current_graph()
        self._claimed: dict[str, str] = {}

    def add_loss(self, layer: keras.Layer, value: Any) -> bool:
        """Takes one `layer.add_loss(value)`. Returns False where Keras should have it."""
        if not self.collecting or _upstream.in_scratch_graph():
            return False
        label = layer.path or layer.name
        self._check_graph(
            LossError,
            f"The loss that layer {label!r} adds",
            "Return the value from the branch or loop and call add_loss there.",
        )
        if not _upstream.gradient_is_recorded():
            raise LossError(
                f"Layer {label!r} calls add_loss inside tf.recompute_grad or keras.remat "
                f"({caller_line()}), where its value would count but its gradient would be lost. "
                "Return the loss from the rematerialised block and add it outside."
            )
        for one in tf.nest.flatten(value):
            self.losses.append(AddedLoss(layer, self.pending_name, one))
        return True

    def claim(self, name: str) -> bool:
        """Whether a summary of this full name may be recorded here; misuse raises.

        It is checked on steps that record nothing too, so that a mistake shows at step 1.
        """
        if not self.collecting or _upstream.in_scratch_graph():
            return False
        self._check_graph(
            SummaryError,
            f"Summary {name!r}",
            "Return the value from the branch, loop or function and record it outside.",
        )
        where = caller_line()
        first = self._claimed.setdefault(name, where)
        if first is not where:
            raise SummaryError(
                f"Summary {name!r} is recorded twice in one step: first at {first}, again at "
                f"{where}. Give them different names, or wrap one in "
                "`with tfloss.summary.scope('...')`."
            )
        return True

    @property
    def dropped(self) -> bool:
        """Whether there were summaries that are not recorded here."""
        recorded = {summary.name for summary in self.summaries.values()}
        return not recorded.issuperset(self._claimed)

    def full_name(self, name: str) -> str:
        """The name with the prefixes of the `tfloss.summary.scope`s around."""
        return "/".join([*self.prefixes, name])

    def write(self, tag: str, tensor: Any, metadata: Any) -> bool:
        """Takes one plain `tf.summary` call; returns False where TensorFlow should have it."""
        if not self.collecting or _upstream.in_scratch_graph():
            return False
        name = unique_name(tag, self._claimed)  # as TensorFlow does; tfloss.summary refuses
        if self.claim(name) and self.recording:
            value: Any = tensor() if callable(tensor) else tf.convert_to_tensor(tensor)
            plugin = metadata.plugin_data.plugin_name if metadata is not None else ""
            kind = "scalar" if plugin == "scalars" else "raw"
            self.summaries[name] = RecordedSummary(
                name, kind, value, options={"metadata": metadata}
            )
        return True

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """Inside, what is reported is dropped: the inference forward reports nothing."""
        self.collecting = False
        try:
            yield
        finally:
            self.collecting = True

    @contextlib.contextmanager
    def backward(self) -> Iterator[None]:
        """Inside, the step is still known but what is reported is dropped.

        The backward pass runs rematerialised blocks again: they must see the same
        `current_step()` and must not report twice.
        """
        with self.silent(), _entered(self):
            yield

    def _check_graph(self, error: type[Exception], what: str, remedy: str) -> None:
        graph = _current_graph()
        if graph is not self._graph:
            inside = getattr(graph, "name", "eager code")
            raise error(
                f"{what} is computed inside a tf.cond, tf.while_loop, tf.map_fn or nested "
                f"tf.function (graph {inside!r}, {caller_line()}), and its tensor can't leave it. "
                + remedy
            )


_local = threading.local()


def current_context() -> ForwardContext | None:
    """The context of the forward pass that this thread is in, or None."""
    stack = getattr(_local, "stack", None)
    return stack[-1] if stack else None


def current_step() -> tf.Tensor:
    """The global step as a scalar int64 tensor, for annealing inside a model.

    It counts completed updates, like the step a learning-rate schedule sees: 0 in the first
    forward pass, right on every step of a multi-step call, the same for all micro-steps of
    an update. In `Trainer.evaluate` it is the trainer's step. Where nobody trains (export,
    plain Keras) it is 0. Called at trace time; its value changes every step.
    """
    context = current_context()
    return tf.constant(0, tf.int64) if context is None else context.step


@contextlib.contextmanager
def forward_context(
    step: tf.Tensor,
    recording: bool,
    share: "float | tf.Tensor" = 1.0,
    normalisers: Any = None,
) -> Iterator[ForwardContext]:
    """Opens the context of one forward pass in this thread. Replica code, trace time.

    Args:
      step: scalar int64 tensor, the number of completed updates.
      recording: whether summaries are wanted. If not, their tensors are dropped, so that
        the graph doesn't compute them.
      share, normalisers: see `ForwardContext`.
    """
    context = ForwardContext(step, recording, share, normalisers)
    with (
        _upstream.intercept_add_loss(_observe_add_loss),
        _upstream.intercept_tf_summary(_observe_write),
        _upstream.losses_not_divided(lambda: current_context() is not None),
        _entered(context),
    ):
        yield context


@contextlib.contextmanager
def _entered(context: ForwardContext) -> Iterator[None]:
    if not hasattr(_local, "stack"):
        _local.stack = []
    _local.stack.append(context)
    try:
        yield
    finally:
        _local.stack.pop()


def _observe_add_loss(layer: keras.Layer, value: Any) -> bool:
    context = current_context()
    return context is not None and context.add_loss(layer, value)


def _observe_write(tag: str, tensor: Any, metadata: Any) -> bool:
    context = current_context()
    return context is not None and context.write(tag, tensor, metadata)


def _current_graph() -> Any:
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
