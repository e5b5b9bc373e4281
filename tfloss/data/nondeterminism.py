"""Finds parts of a `tf.data` pipeline that are not reproducible or can't be saved. Host code.

nondeterministic_inputs(dataset)  # ["ShuffleDataset without a seed: ...", ...]
unsaveable_inputs(dataset)  # ["Python code (input.py:12, in decode)", ...]
"""

from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfloss import _upstream
from tfloss.inspect.source_lines import op_line
from tfloss.inspect.traced_ops import operations

# PyFuncStateless is Python code that its user declared free of state. DummySeedGenerator belongs
# to a shuffle in a function of `flat_map`, `interleave` or `group_by_window`; elsewhere a shuffle
# can be saved.
_PYTHON = ("PyFunc", "EagerPyFunc", "PyFuncStateless")
_UNSAVEABLE = ("PyFunc", "EagerPyFunc", "ReadVariableOp", "DummySeedGenerator")
# An iterator that is saved while its snapshot is written fails later on.
_SNAPSHOTS = ("SnapshotDataset", "SnapshotDatasetV2")
_PARALLEL = ("ParallelMapDataset", "ParallelInterleaveDataset")
_SET_SEED = "set one, or call keras.utils.set_random_seed before"
_UNSEEDED = f" without a seed: {_SET_SEED}"
_UNORDERED = " with deterministic=False: remove that argument"


def nondeterministic_inputs(
    dataset: "tf.data.Dataset[Any]", *, op_determinism: bool = False, seeds: bool = True
) -> list[str]:
    """Lists why a data set may yield other elements, or another order, in another process.

    Python code (`from_generator`, `numpy_function`) can't be judged, and TensorFlow doesn't tell
    the `deterministic` argument of `interleave`. So neither is listed.

    Args:
      dataset: Any data set.
      op_determinism: Whether op determinism is on (`enable_op_determinism`), which makes parallel
        calls keep their order.
      seeds: Whether to list what has no seed. The saved state of an iterator holds what a shuffle
        has drawn, but doesn't restore the order of parallel calls.

    Returns:
      For each op or data set, what it is and how to fix it.
    """
    found: dict[str, None] = {}
    if dataset.options().deterministic is False and not op_determinism:
        found["options().deterministic is False: remove that option"] = None
    for one in _upstream.datasets_below(dataset):
        name = type(one).__name__.strip("_")
        given, order = _upstream.dataset_seeds(one), _upstream.dataset_order(one)
        if seeds and given == (0, 0):
            found[name + _UNSEEDED] = None
        if order == "false" and not op_determinism:
            found[name + _UNORDERED] = None
        parallel = name in _PARALLEL and not op_determinism
        for op in _ops(one):
            if problem := _problem(op, parallel, op_determinism, seeds):
                found[f"{op.type} ({op_line(op)}){problem}"] = None
    return list(found)


def stateful_ops(dataset: "tf.data.Dataset[Any]", remedy: str) -> list[str]:
    """Lists the ops in a data set's functions whose results depend on what was drawn before.

    These are random ops that aren't stateless, generators, and variables that are changed, such as
    the seed generator of a Keras augmentation layer.

    Args:
      dataset: Any data set.
      remedy: What to use instead.
    """
    ops = [op for one in _upstream.datasets_below(dataset) for op in _ops(one)]
    bad = [op for op in ops if _state(op)]
    return list(dict.fromkeys(f"{op.type} ({op_line(op)}): {remedy}" for op in bad))


def python_ops(dataset: "tf.data.Dataset[Any]", without: str) -> list[str]:
    """Lists the Python functions that a data set's functions call, and their lines.

    Args:
      dataset: Any data set.
      without: Begin of the names of ops that are left out.
    """
    ops = [op for one in _upstream.datasets_below(dataset) for op in _ops(one)]
    python = [op for op in ops if op.type in _PYTHON and not op.name.startswith(without)]
    return list(dict.fromkeys(f"{op.type} ({op_line(op)})" for op in python))


def unsaveable_inputs(dataset: "tf.data.Dataset[Any]") -> list[str]:
    """Lists why TensorFlow can't save an iterator of a data set: ops with state, and their lines.

    These are snapshots, and, in the functions of `map` and similar methods, random ops that aren't
    stateless, Python code, shuffles, and variables (of a Keras augmentation layer's seed generator
    or of a `tf.random.Generator`).

    Args:
      dataset: Any data set.
    """
    below = _upstream.datasets_below(dataset)
    bad = [op for one in below for op in _ops(one) if op.type in _UNSAVEABLE or _state(op)]
    kinds: dict[str, str] = dict.fromkeys(_PYTHON, "Python code")
    found = [f"{kinds.get(op.type, op.type)} ({op_line(op)})" for op in bad]
    return list(dict.fromkeys(["snapshot()" for _ in snapshots(dataset)] + found))


def snapshots(dataset: "tf.data.Dataset[Any]") -> list[str]:
    """Lists the snapshots that a data set writes or reads, in its functions too.

    Args:
      dataset: Any data set.
    """
    below = _upstream.datasets_below(dataset)
    names = [type(one).__name__.strip("_") for one in below]
    names += [op.type for one in below for op in _ops(one)]
    return [name for name in names if name in _SNAPSHOTS]


def _ops(dataset: Any) -> Iterator[tf.Operation]:
    for graph in _upstream.dataset_graphs(dataset):
        yield from (op for op, _ in operations(graph))


def _state(op: tf.Operation) -> str:
    """Where an op keeps state that it changes, or "". Python code is looked at by other means."""
    state = _upstream.op_state(op)
    return "" if state == "python" else state


def _problem(op: tf.Operation, parallel: bool, op_determinism: bool, seeds: bool) -> str:
    """Returns why an op in a data set's function is not reproducible, or ""."""
    state = _state(op)
    if state and parallel:
        return " in parallel calls: use tf.random.stateless_* with a seed from the element"
    if state == "kernel" and op.get_attr("seed") == op.get_attr("seed2") == 0:
        return _UNSEEDED if seeds else ""
    if not any(output.dtype == tf.variant for output in op.outputs):  # it makes no data set
        return ""
    inputs = {arg.name: x for arg, x in zip(op.op_def.input_arg, op.inputs, strict=False)}
    given = [tf.get_static_value(inputs[name]) for name in ("seed", "seed2") if name in inputs]
    if seeds and given and all(seed == 0 for seed in given):
        return _UNSEEDED
    ordered = any(attribute.name == "deterministic" for attribute in op.op_def.attr)
    if ordered and not op_determinism and op.get_attr("deterministic") == b"false":
        return _UNORDERED
    return ""
