"""The ops of a traced step, as a `GraphDef` to be called by another function.

A copy that XLA compiles differs from the step of a graph:

- The assertions of the guard are left out. XLA has no Python to keep the bad batch with.
- Random ops are replaced by those that draw the numbers of a graph (`tfloss._upstream.xla_random`).
- Gradients of `tf.slice` are replaced by those for XLA (`tfloss._upstream.xla_slices`).

A step is traced again for XLA if it has one of these, which only a graph has:

- Optionals, by which gradients of `tf.cond` and `tf.switch_case` get what a branch has computed.
- Sizes that a `tf.while_loop` keeps for its gradient. XLA must know them before it runs.
- `tf.unique`, by which tfloss merges sparse gradients for Adagrad, and for SGD if it clips them.
- Branches for devices.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfloss import _upstream
from tfloss._upstream import xla_random, xla_slices
from tfloss.engine.finite_guard import SCOPE

_IN_GUARD = re.compile(rf"(^|/){SCOPE}(_\d+)?/")
_CONTROL_FLOW = ("While", "StatelessWhile", "If", "StatelessIf", "Case", "StatelessCase")
_SHAPES = ("Shape", "Size", "Rank", "TensorListElementShape", "TensorListLength")


def in_guard(name: str) -> bool:
    """Whether an op belongs to the guard.

    Args:
      name: Name of the op.
    """
    return SCOPE in name and _IN_GUARD.search(name) is not None


@dataclasses.dataclass(frozen=True)
class StepCopy:
    """Ops to be copied.

    Attributes:
      ops: `GraphDef`.
      inputs: Names of the tensors that they use.
      captured: Those of them that were captured.
      always: Names of those that run even if no result needs them.
      variables: The variables that they use.
    """

    ops: Any
    inputs: set[str]
    captured: dict[str, tf.Tensor]
    always: list[str]
    variables: list[tf.Variable]

    @classmethod
    def of(
        cls, graph: Any, names: Sequence[str], leaves: Sequence[tf.Tensor], *, xla: bool
    ) -> "StepCopy | None":
        """Takes the ops out of a graph.

        Args:
          graph: The graph.
          names: Their names.
          leaves: The tensors of their batch.
          xla: Whether XLA compiles the copy.

        Returns:
          None if they use other tensors, or can't be copied for XLA; if the trace has failed; or if
          the graph is too large for a `GraphDef`.
        """
        if not graph.outputs:
            return None
        placeholders = {here.op.name for _, here in graph.captures}
        try:
            whole, chosen = graph.as_graph_def(), set(names) - placeholders
        except Exception:  # noqa: BLE001 - each part of TensorFlow has its own error for 2 GB
            return None
        ops = tf.compat.v1.GraphDef(library=whole.library, versions=whole.versions)
        ops.node.extend(node for node in whole.node if node.name in chosen)
        if xla and not _make_compilable(ops):
            return None
        if not all(map(_upstream.is_op, {node.op for node in ops.node})):
            return None
        inputs = _cut(ops)
        captured = _upstream.captured_values(graph)
        if inputs - set(captured) - {one.name for one in leaves}:
            return None
        always = [op.name for op in graph.control_outputs]
        return cls(ops, inputs, captured, always, _upstream.used_variables(graph))


def _make_compilable(ops: Any) -> bool:
    """Replaces what XLA lacks or computes otherwise; returns whether that can be done."""
    _drop_guard(ops.node)
    _upstream.drop_functions(ops)
    for one in ops.library.function:
        _drop_guard(one.node_def)  # that of a branch of the step
        names = {node.name for node in one.node_def}
        for result, name in list(one.control_ret.items()):
            if name not in names:
                del one.control_ret[result]
                one.signature.control_output.remove(result)
    _upstream.drop_functions(ops)
    functions = {one.signature.name: one.node_def for one in ops.library.function}
    helpers = tf.compat.v1.GraphDef().library
    for nodes in (ops.node, *functions.values()):
        scope = {node.name: node for node in nodes}
        for node in nodes:
            if not _is_alike(node, functions):
                return False
            if node.op in _CONTROL_FLOW:
                node.attr.pop("_lower_using_switch_merge", None)
            if node.op.endswith("While"):
                node.attr["_xla_propagate_compile_time_consts"].b = True
            if not xla_random.draw_as_in_a_graph(node, helpers):
                xla_slices.gradient_for_xla(node, scope, helpers)
    _upstream.rename_functions(ops, "_xla")
    ops.library.function.extend(helpers.function)
    return True


def _drop_guard(nodes: Any) -> None:
    """Leaves out the nodes of the guard, in a graph or function."""
    guard = [node for node in nodes if in_guard(node.name)]
    for node in guard:
        if node.op == "Assert":  # the update comes after it
            node.op = "NoOp"
            node.input[:] = [name for name in node.input if name.startswith("^")]
            node.attr.clear()
    dropped = {node.name for node in guard if node.op != "NoOp"}
    if not dropped:
        return
    kept = [node for node in nodes if node.name not in dropped]
    for node in kept:
        node.input[:] = [name for name in node.input if name.removeprefix("^") not in dropped]
    del nodes[:]
    nodes.extend(kept)


def _is_alike(node: Any, functions: Mapping[str, Any]) -> bool:
    """Whether XLA can compile what was traced for a graph."""
    if node.op.startswith("Optional") or node.op in ("DeviceIndex", "Unique"):
        return False
    if not node.op.endswith("While"):
        return True
    # In a graph, a gradient keeps the shapes of what the loop computes in place of the values.
    body = functions.get(node.attr["body"].func.name, ())
    kinds = {one.name: one.op for one in body}
    kept = [one.input[1] for one in body if one.op == "TensorListPushBack"]
    return not any(kinds.get(name.split(":")[0]) in _SHAPES for name in kept)


def _cut(ops: Any) -> set[str]:
    """Drops the order after ops that are not copied; returns the tensors of those that are used."""
    here = {node.name for node in ops.node}
    inputs: set[str] = set()
    for node in ops.node:
        kept = [name for name in node.input if not name.startswith("^") or name[1:] in here]
        node.input[:] = kept
        for name in kept:
            if not name.startswith("^") and name.split(":")[0] not in here:
                inputs.add(name if ":" in name else f"{name}:0")
        if "_class" in node.attr:  # which may name an op that is not copied
            del node.attr["_class"]
    return inputs
