"""The ops of a traced step, as a `GraphDef` to be called by another function.

A copy that XLA compiles differs from the step of a graph:

- The assertions of the guard are left out. XLA has no Python to keep the bad batch with.
- Random ops are replaced by those that draw the numbers of a graph (`tfloss._upstream.xla_random`).

TensorFlow traces a few more things otherwise if XLA compiles them: gradients of `tf.cond`,
`tf.while_loop` and `tf.slice`, and branches for devices. tfloss merges sparse gradients, by
`tf.unique`, only in a graph. A step with any of them is not copied.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfloss import _upstream
from tfloss._upstream import xla_random
from tfloss.engine.finite_guard import SCOPE

_IN_GUARD = re.compile(rf"(^|/){SCOPE}(_\d+)?/")
_CONTROL_FLOW = ("While", "StatelessWhile", "If", "StatelessIf", "Case", "StatelessCase")
_GRADIENT = re.compile(r"_grad_\d+")  # in the names of functions of control flow


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
    guard = [node for node in ops.node if in_guard(node.name)]
    for node in guard:
        if node.op == "Assert":  # the update comes after it
            node.op = "NoOp"
            node.input[:] = [name for name in node.input if name.startswith("^")]
            node.attr.clear()
    dropped = {node.name for node in guard if node.op != "NoOp"}
    kept = [node for node in ops.node if node.name not in dropped]
    del ops.node[:]
    ops.node.extend(kept)
    _upstream.drop_functions(ops)
    scopes = [ops.node, *(one.node_def for one in ops.library.function)]
    for nodes in scopes:
        by_name = {node.name: node for node in nodes}
        if not all(_is_alike(node, by_name) for node in nodes):
            return False
    helpers = tf.compat.v1.GraphDef().library

    def change(node: Any) -> bool:
        if node.op in _CONTROL_FLOW:
            node.attr.pop("_lower_using_switch_merge", None)
            if node.op.endswith("While"):
                node.attr["_xla_propagate_compile_time_consts"].b = True
        return xla_random.draw_as_in_a_graph(node, helpers) or node.op in _CONTROL_FLOW

    rename = _upstream.change_functions(ops.library, change, "_xla")
    for node in ops.node:
        change(node)
    rename(ops.node)
    ops.library.function.extend(helpers.function)
    return True


def _is_alike(node: Any, scope: Mapping[str, Any]) -> bool:
    """Whether a trace for XLA has the same op."""
    if node.op == "Assert" and in_guard(node.name):  # of a branch of the step
        return False
    if node.op.startswith("Optional") or node.op in ("DeviceIndex", "Unique"):
        return False
    if node.op in _CONTROL_FLOW:
        return not any(map(_GRADIENT.search, _upstream.called_names(node)))
    if node.op in ("Pad", "PadV2"):
        paddings = scope.get(node.input[1].split(":")[0])
        return paddings is not None and paddings.op == "Const"
    return True


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
