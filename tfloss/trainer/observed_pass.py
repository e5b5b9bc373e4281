"""What the forward and backward passes of a traced step compute, as rows of a report. Trace time.

    passes = ObservedPasses(model, strategy, running_lines())
    step(batch, TraceOptions(observe=passes.observe))
    passes.losses, passes.variables, passes.reaching, passes.findings

Only the first replica is looked at. All replicas compute the same, of other examples.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfloss import _upstream
from tfloss.checkpoint.untracked import untracked, variable_of
from tfloss.forward.batch_sums import batch_sums
from tfloss.forward.losses import REGULARIZATION, described_weight, returned_names
from tfloss.forward.reachability import reached_tensors
from tfloss.inspect.report import NOT_IN_CODE, Finding, InspectedLoss
from tfloss.inspect.source_lines import op_line
from tfloss.inspect.traced_ops import operations
from tfloss.inspect.xla_compile_errors import uncompilable_ops
from tfloss.step.observation import Observation
from tfloss.trainer.inference_layers import variables_used

# Types of ops by which tfloss makes a loss of what the model reported.
_SCALED = ("Cast", "Identity", "EnsureShape", "Mul", "AddN", "AddV2")
_SUMMED = ("Sum", "DivNoNan")  # over the global batch, if it is no scalar


class ObservedPasses:
    """Collects what the passes of one step report.

    Args:
      model: The model.
      strategy: The strategy of the step.
      outside: Lines that were running when the trace began.

    Attributes:
      losses: `{name: loss}`.
      variables: `{group: its variables}`.
      reaching: `{id of a variable: names of the losses whose gradient reaches it}`.
      summaries: Names of the summaries.
      findings: What may not be meant.
      used: Ids of the handles of the variables that the forward pass uses.
    """

    def __init__(
        self, model: keras.Model, strategy: tf.distribute.Strategy, outside: Collection[str]
    ):
        self._model, self._strategy, self._outside = model, strategy, outside
        self._device: str | None = None
        self.losses: dict[str, InspectedLoss] = {}
        self.variables: dict[str, Sequence[Any]] = {}
        self.reaching: dict[int, list[str]] = {}
        self.summaries: dict[str, None] = {}
        self.findings: list[Finding] = []
        self.used: set[int] = set()

    def observe(self, seen: Observation) -> None:
        """Takes what a pass computes. Replica code, traced."""
        replica = tf.distribute.get_replica_context()
        if replica is not None and tf.get_static_value(replica.replica_id_in_sync_group):
            return
        if replica is not None and replica.num_replicas_in_sync > 1:
            self._device = tf.zeros([]).device
        self.variables.update(seen.variables)
        for name, loss in seen.losses.items():
            self._add_loss(name, loss, seen)
        recorded = [one.name for one in seen.context.summaries.values()]
        self.summaries.update(dict.fromkeys([*recorded, *seen.context.dropped]))
        self.findings += self._found(seen)

    def is_users(self, line: str) -> bool:
        """Whether a line, as `op_line` returns it, is one that the user's model runs."""
        return line not in self._outside and line != NOT_IN_CODE

    def is_first_replica(self, op: tf.Operation) -> bool:
        """Whether an op runs on the first replica, or for all of them."""
        return self._device is None or op.device in ("", self._device)

    def line_of(self, tensor: tf.Tensor) -> str:
        """The line that computed a tensor, without what tfloss has made of it since."""
        seen: set[str] = set()
        while tensor.op.name not in seen:
            seen.add(tensor.op.name)
            line = op_line(tensor.op)
            if self.is_users(line):
                return line
            if tensor.op.type not in _SCALED + _SUMMED:
                break
            tensor = tensor.op.inputs[0]
        return NOT_IN_CODE

    def changed_state(self, graph: Any) -> Iterator[str]:
        """Yields the paths of the model's variables that a traced step changes, in a forward pass.

        Args:
          graph: The graph of the step.
        """
        paths = self.handles(self._model.non_trainable_variables)
        others = [(name, variable_of(one)) for name, one in untracked(self._model)]
        trained = set(self.handles(self._model.trainable_variables))
        for name, variable in others:
            if variable is not None:
                paths = {key: name for key in self.handles([variable])} | paths
        changed = [
            paths.get(handle)
            for op, known in operations(graph)
            if _upstream.op_state(op) in ("variable", "generator")
            and (handle := known.get(op.inputs[0].name)) is not None
            and handle not in trained
        ]
        yield from dict.fromkeys(path for path in changed if path is not None)

    @staticmethod
    def handles(variables: Collection[Any]) -> dict[int, str]:
        """`{id of the handle: path}` of variables, of all replicas."""
        found = {}
        for variable in variables:
            value = variable.value if isinstance(variable, keras.Variable) else variable
            path = getattr(variable, "path", variable.name)
            found |= {id(one.handle): path for one in getattr(value, "values", (value,))}
        return found

    def _add_loss(self, name: str, loss: tf.Tensor, seen: Observation) -> None:
        groups = tuple(group for group, names in seen.assigned.items() if name in names)
        if name in self.losses:  # another branch of the step, or the same call again
            return
        weight = described_weight(seen.weights.of(name))
        computed = loss
        while computed.op.type in ("Cast", "EnsureShape") and not self.is_users(
            op_line(computed.op)
        ):
            computed = computed.op.inputs[0]
        if name == REGULARIZATION:
            layer, line = "weight regularizers", NOT_IN_CODE
        else:
            layer, line = self._layer_of(name, loss, seen), self.line_of(loss)
        dtype = computed.dtype.name
        self.losses[name] = InspectedLoss(name, layer, weight, dtype, line, groups)
        names: dict[str, list[Any]] = {}
        for group in groups:
            for variable in seen.variables[group]:
                value = variable.value if isinstance(variable, keras.Variable) else variable
                names.setdefault(_upstream.captured_here(value.handle).name, []).append(variable)
        for tensor in reached_tensors(loss, names):
            for variable in names[tensor]:
                self.reaching.setdefault(id(variable), []).append(name)

    def _layer_of(self, name: str, loss: tf.Tensor, seen: Observation) -> str:
        if name in returned_names(seen.returned):
            return self._model.name
        for added in seen.context.losses:
            path = added.layer.path or added.layer.name
            if name == path or name.startswith((f"{path}/", f"{path}_")):
                return path
        return self._model.name

    def _found(self, seen: Observation) -> Iterator[Finding]:
        for group, gradients in seen.gradients.items():
            for variable, gradient in zip(seen.variables[group], gradients, strict=True):
                if gradient is None:
                    yield Finding(
                        "Variable that no loss reaches",
                        variable.path,
                        "",
                        "It is not trained. Does the training forward use its layer, or is a "
                        "tf.stop_gradient or an integer in between?",
                    )
        for variable in seen.untracked:
            yield Finding(
                "Variable that Keras doesn't know",
                variable.name,
                "",
                "It is not trained. Make it with add_weight, and keep its layer as an attribute.",
            )
        size = seen.context.example_weight
        static = tf.nest.flatten(seen.batch, expand_composites=True)
        rows = [x.shape[0] for x in static if tf.is_tensor(x) and x.shape.rank]
        examples = rows[0] if rows and isinstance(rows[0], int) else None
        half = 0.5 if isinstance(size, float) and size == 1.0 else size  # as on two replicas
        for one in batch_sums(seen.losses, seen.batch, examples, half):
            kind = "Sum over the examples of one replica"
            yield Finding(kind, f"loss {one.loss!r}", one.line, one.cure)
        graph = tf.compat.v1.get_default_graph()
        self.used |= {id_ for id_, _ in variables_used(graph)}
        for text in uncompilable_ops(graph):
            op, _, line = text.removesuffix(")").partition(" (")
            if self.is_users(line):
                yield Finding(
                    "Op that XLA can't compile",
                    op,
                    line,
                    "Move it to the input pipeline, or train with jit=False.",
                )
