"""The forward context: what code inside a model can reach while the model is trained.

    with forward_context(step, recording=True) as context:    # replica, traced
        returned = model(batch, training=True)
    context.losses, context.summaries

A context belongs to one replica and one forward pass. It is opened inside the function that
`strategy.run` calls, because each replica runs in its own thread and does not see what the main
thread has set. Outside of a context `tfloss.summary.*` does nothing and `add_loss` is that of
Keras.
"""

import contextlib
import threading
from collections.abc import Generator
from typing import Any, Protocol

import keras
import tensorflow as tf

from tfloss import _upstream
from tfloss.common.unique_names import unique_name
from tfloss.errors import LossError, SummaryError
from tfloss.forward.layer_losses import AddedLoss, LayerLosses
from tfloss.forward.recorded_summaries import RecordedSummary
from tfloss.forward.reduced_tensors import note_reduced
from tfloss.forward.synchronisation import synchronisation_explained
from tfloss.inspect.source_lines import caller_line


class Normalisers(Protocol):
    """Where `global_mean` takes its global sums from; see `tfloss.forward.global_batch`."""

    def mean(self, total: tf.Tensor, weight: tf.Tensor, example_weight: Any) -> tf.Tensor:
        """Returns the local part of a global mean. Replica code, traced.

        Args:
          total: Local weighted sum of the values, float32 scalar.
          weight: Local sum of the weights, float32 scalar.
          example_weight: Weight of this forward pass in the objective.
        """
        ...


class ForwardContext:
    """The step, losses and summaries of one replica's forward pass. Replica code, traced.

    Attributes:
      step: Number of completed updates, int64 scalar tensor.
      recording: Whether summaries are recorded.
      example_weight: Weight of this forward pass in the objective.
      normalisers: Where `global_mean` takes its global sums from, or None.
      losses: The values passed to `add_loss` so far.
      layer_losses: What `layer.losses` returns.
      holders: `{id of a variable or AddedLoss: names of the losses that contain its value}`, of
        what the forward pass read from `layer.losses`, after the losses were collected.
      summaries: The summaries recorded so far. The key is the name, with a suffix for each tensor
        of a drawing.
      prefixes: Prefixes of the open `tfloss.summary.scope`s.
      pending_name: Name that `tfloss.add_loss` gives to the next loss, or None.
      only_returned: Whether losses and regularizers that are no part of a returned loss are left
        out.
      collecting: Whether losses and summaries are accepted.
      traces: Owner of the traces of nested `tf.function`s, which capture tensors of this pass.
    """

    def __init__(
        self,
        step: tf.Tensor,
        recording: bool,
        example_weight: "float | tf.Tensor" = 1.0,
        normalisers: Normalisers | None = None,
    ):
        """Creates an empty context that belongs to the current graph.

        Args:
          step: Number of completed updates, int64 scalar tensor.
          recording: Whether to record summaries.
          example_weight: Weight of this forward pass in the objective: its fraction of the
            examples of the step. The weights of all replicas and micro-batches sum to 1.
          normalisers: Where `global_mean` takes its global sums from. If None, it reduces over the
            replicas.
        """
        self.step = step
        self.recording = recording
        self.example_weight = example_weight
        self.normalisers = normalisers
        self.losses: list[AddedLoss] = []
        self.layer_losses = LayerLosses(self.losses)
        self.holders: dict[int, list[str]] = {}
        self.summaries: dict[str, RecordedSummary] = {}
        self.prefixes: list[str] = []
        self.pending_name: str | None = None
        self.only_returned = False
        self.collecting = True
        self._training: bool | None = True  # of layers whose call doesn't say
        self._clears = False  # whether a cleared loss is dropped, not only hidden
        self._rerun = False  # whether a backward pass runs
        self._modes: dict[int, bool | None] = {}  # by id of a layer, of its last call
        self.traces = object()
        self._graph = _current_graph()
        self._claimed: dict[str, str] = {}

    def add_loss(self, layer: keras.Layer, value: Any) -> bool:
        """Collects a call of `layer.add_loss(value)`.

        Args:
          layer: Layer whose `add_loss` was called.
          value: Scalar tensor, or a nest of them.

        Returns:
          Whether the value was taken. If not, Keras should get it.

        Raises:
          LossError: The value can't leave the current graph, or its gradient would be lost.
        """
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
                f"({caller_line()}). The loss would be counted, but its gradient would be lost. "
                "Return the loss from the rematerialised block and call add_loss outside."
            )
        for one in tf.nest.flatten(value):
            self.losses.append(AddedLoss(layer, self.pending_name, one))
        return True

    def read_losses(self, layer: keras.Layer) -> list[tf.Tensor] | None:
        """Returns the value of `layer.losses`.

        Args:
          layer: Layer whose `losses` are read.

        Returns:
          The losses. If None, Keras should say.

        Raises:
          LossError: A value that is computed here can't leave the current graph.
        """
        if not self.collecting or _upstream.in_scratch_graph():
            return None
        self._check_graph(
            LossError,
            f"`losses` of layer {layer.path or layer.name!r}",
            "Read them outside of it.",
        )
        return self.layer_losses.of(layer)

    def enter(self, layer: keras.Layer) -> bool | None:
        """Runs before a layer is called outside of the call of another one.

        Args:
          layer: The layer.

        Returns:
          Whether it is in training mode if its call doesn't say. In a backward pass, it is in the
          mode of its last call in the forward pass.
        """
        self.layer_losses.clear(layer)
        if self._clears:
            self.losses[:] = [one for one in self.losses if not self.layer_losses.is_hidden(one)]
        return self._modes.get(id(layer), self._training) if self._rerun else self._training

    def leave(self, layer: keras.Layer, training: bool | None) -> None:
        """Runs after the call of a layer.

        Args:
          layer: The layer.
          training: The mode that it was called in.
        """
        self._modes[id(layer)] = training

    def claim(self, name: str) -> bool:
        """Reserves the name of a summary.

        This runs at steps that record nothing too, so that a mistake shows at step 1.

        Args:
          name: Full name of the summary.

        Returns:
          Whether the summary may be recorded here.

        Raises:
          SummaryError: The name was used before, or the summary can't leave the current graph.
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
    def dropped(self) -> tuple[str, ...]:
        """Names of the summaries of the forward pass that were not recorded."""
        recorded = {summary.name for summary in self.summaries.values()}
        return tuple(name for name in self._claimed if name not in recorded)

    def full_name(self, name: str) -> str:
        """Returns a name with the prefixes of the open `tfloss.summary.scope`s."""
        return "/".join([*self.prefixes, name])

    def write(self, tag: str, tensor: Any, metadata: Any) -> bool:
        """Collects a plain `tf.summary` call.

        Args:
          tag: Tag, with the path of the layer being called.
          tensor: Tensor, or a function that returns it.
          metadata: SummaryMetadata proto, or None.

        Returns:
          Whether the summary was taken. If not, TensorFlow should get it.

        Raises:
          SummaryError: The summary can't leave the current graph.
        """
        if not self.collecting or _upstream.in_scratch_graph():
            return False
        # TensorFlow makes tags unique too. tfloss.summary raises an error instead.
        name = unique_name(tag, self._claimed)
        if self.claim(name) and self.recording:
            value: Any = tensor() if callable(tensor) else tf.convert_to_tensor(tensor)
            plugin = metadata.plugin_data.plugin_name if metadata is not None else ""
            kind = "scalar" if plugin == "scalars" else "raw"
            options = {"metadata": metadata}
            self.summaries[name] = RecordedSummary(name, kind, value, options=options)
        return True

    @contextlib.contextmanager
    def silent(self) -> Generator[None]:
        """Drops the losses and summaries of the code inside, as for an inference forward.

        Yields:
          None.
        """
        self.collecting, self._training = False, None
        try:
            yield
        finally:
            self.collecting, self._training = True, True

    @contextlib.contextmanager
    def in_fit(self) -> Generator[None]:
        """Makes layers behave as in Keras's `fit`, if they are called outside of all calls.

        A layer whose call doesn't say is in inference mode. A call drops the losses that the layer
        and its sublayers have added before.

        Yields:
          None.
        """
        before = self._training
        self._training, self._clears = None, True
        try:
            yield
        finally:
            self._training, self._clears = before, False

    @contextlib.contextmanager
    def backward(self) -> Generator[None]:
        """Makes the context current for a backward pass, and drops losses and summaries.

        The backward pass runs rematerialised blocks again. They must see the same `current_step()`,
        training mode and random numbers, must not report twice, and must not change statistics
        twice.

        Yields:
          None.
        """
        self._rerun = True
        with (
            self.silent(),
            keras.StatelessScope(),
            _upstream.layer_modes(current_context),
            _upstream.repeated_seeds(_in_a_pass),
            _upstream.keras_generator_of_strategy(),
            _entered(self),
        ):
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
    """Returns the context of this thread's forward pass, or None. Replica code, traced."""
    stack = getattr(_local, "stack", None)
    return stack[-1] if stack else None


def current_step() -> tf.Tensor:
    """Returns the global step, for annealing inside a model. Replica code, traced.

    The step counts completed updates, as a learning-rate schedule does: it is 0 in the first
    forward pass, correct at every step of a multi-step call, and the same for all micro-batches of
    an update. In `Trainer.evaluate` it is the trainer's step. Outside of tfloss (export, plain
    Keras) it is 0.

    Returns:
      The step, int64 scalar tensor. Its value differs at every step.
    """
    context = current_context()
    return tf.constant(0, tf.int64) if context is None else context.step


@contextlib.contextmanager
def forward_context(
    step: tf.Tensor,
    recording: bool,
    example_weight: "float | tf.Tensor" = 1.0,
    normalisers: Normalisers | None = None,
) -> Generator[ForwardContext]:
    """Opens the context of one forward pass in this thread. Replica code, traced.

    Args:
      step: Number of completed updates, int64 scalar tensor.
      recording: Whether to record summaries. If False, their tensors are dropped, so that the
        graph does not compute them.
      example_weight: See `ForwardContext`.
      normalisers: See `ForwardContext`.

    Yields:
      The context.
    """
    context = ForwardContext(step, recording, example_weight, normalisers)
    with (
        _upstream.intercept_add_loss(_observe_add_loss),
        _upstream.intercept_losses(_observe_read),
        _upstream.intercept_tf_summary(_observe_write),
        _upstream.intercept_reductions(note_reduced),
        _upstream.layer_modes(current_context),
        _upstream.repeated_seeds(_in_a_pass),
        _upstream.losses_not_divided(_in_a_pass),
        _upstream.keras_generator_of_strategy(),
        synchronisation_explained(),
        _entered(context),
    ):
        yield context


@contextlib.contextmanager
def plain_forward(training: bool | None) -> Generator[None]:
    """Runs a forward pass without a context, such as that of an export. Traced or eager.

    Each layer is in the mode that its call says, or the call around it, as in a forward context.

    Args:
      training: Whether layers that are called outside of all calls are in training mode, if their
        call doesn't say. None leaves it to Keras.

    Yields:
      None.
    """
    modes = _DefaultMode(training)
    with (
        _upstream.layer_modes(lambda: modes),
        _upstream.own_function_traces(modes),
        _upstream.repeated_seeds(lambda: True),
    ):
        yield


@contextlib.contextmanager
def as_in_fit() -> Generator[None]:
    """Runs code in the call of a model as `fit` runs `train_step` and `compute_loss`. Traced.

    That is outside of the calls of all layers: layers that the code calls don't take over the mode
    and the dtype of the call around it. See `ForwardContext.in_fit`.

    Yields:
      None.
    """
    context = current_context()
    in_fit = contextlib.nullcontext() if context is None else context.in_fit()
    with _upstream.outside_layer_calls(), in_fit:
        yield


def _in_a_pass() -> bool:
    return current_context() is not None


class _DefaultMode:
    """The mode of outermost calls."""

    def __init__(self, training: bool | None):
        self._training = training

    def enter(self, layer: keras.Layer) -> bool | None:
        return self._training

    def leave(self, layer: keras.Layer, training: bool | None) -> None: ...


@contextlib.contextmanager
def _entered(context: ForwardContext) -> Generator[None]:
    if not hasattr(_local, "stack"):
        _local.stack = []
    _local.stack.append(context)
    try:
        with _upstream.own_function_traces(context.traces):
            yield
    finally:
        _local.stack.pop()


def _observe_add_loss(layer: keras.Layer, value: Any) -> bool:
    context = current_context()
    return context is not None and context.add_loss(layer, value)


def _observe_read(layer: keras.Layer) -> list[tf.Tensor] | None:
    context = current_context()
    return None if context is None else context.read_losses(layer)


def _observe_write(tag: str, tensor: Any, metadata: Any) -> bool:
    context = current_context()
    return context is not None and context.write(tag, tensor, metadata)


def _current_graph() -> Any:
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
