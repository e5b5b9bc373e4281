"""What in a `tf.data` pipeline is another one when it is read again, or can't be saved. Host code.

nondeterministic_inputs(dataset)  # ["ShuffleDataset without a seed: ...", ...]
unsaveable_inputs(dataset)  # ["PyFunc (input.py:12, in decode)", ...]
"""

from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfloss import _upstream
from tfloss.inspect.source_lines import op_line
from tfloss.inspect.traced_ops import operations

# PyFuncStateless is Python code that its user has called pure. The last is of a shuffle in a
# function of `flat_map`, `interleave` or `group_by_window`; elsewhere a shuffle can be saved.
_UNSAVEABLE = ("PyFunc", "EagerPyFunc", "ReadVariableOp", "DummySeedGenerator")
_SEED = "give it one, or call keras.utils.set_random_seed before"


def nondeterministic_inputs(
    dataset: tf.data.Dataset, *, op_determinism: bool = False, seeds: bool = True
) -> list[str]:
    """Why a data set, read again in another process, may give other elements or another order.

    Each is an op or a data set, and what to do. An iterator's checkpoint goes on exactly after an
    unseeded shuffle, but not after what is out of order. What Python code does (`from_generator`,
    `numpy_function`) nobody knows, and TensorFlow doesn't say what `interleave` was given as
    `deterministic`: neither is listed.

    Args:
      dataset: any.
      op_determinism: op determinism is on (`enable_op_determinism`): parallel calls keep order.
      seeds: Whether to list what has no seed. A saved iterator holds what a shuffle has drawn.
    """
    found: dict[str, None] = {}
    if dataset.options().deterministic is False and not op_determinism:
        found["options().deterministic is False: leave that out"] = None
    for one in _upstream.datasets_below(dataset):
        name = type(one).__name__.strip("_")
        given, order = _upstream.dataset_seeds(one), _upstream.dataset_order(one)
        if seeds and given == (0, 0):
            found[f"{name} without a seed: {_SEED}"] = None
        if order == "false" and not op_determinism:
            found[f"{name} with deterministic=False: leave that out"] = None
        parallel = name.startswith("Parallel") and not op_determinism
        for op in _ops(one):
            if said := _not_repeated(op, parallel, op_determinism, seeds):
                found[f"{op.type} ({op_line(op)}){said}"] = None
    return list(found)


def unsaveable_inputs(dataset: tf.data.Dataset) -> list[str]:
    """Why TensorFlow can't save an iterator of a data set: each op with state, by its line.

    They are random ops that aren't stateless, Python code, shuffles, and variables (of a Keras
    augmentation layer's seed generator, of a `tf.random.Generator`) in the functions of `map` and
    the like.
    """
    ops = [op for one in _upstream.datasets_below(dataset) for op in _ops(one)]
    bad = [op for op in ops if op.type in _UNSAVEABLE or _upstream.op_state(op)]
    return list(dict.fromkeys(f"{op.type} ({op_line(op)})" for op in bad))


def _ops(dataset: Any) -> Iterator[tf.Operation]:
    for graph in _upstream.dataset_graphs(dataset):
        yield from (op for op, _ in operations(graph))


def _not_repeated(op: tf.Operation, parallel: bool, op_determinism: bool, seeds: bool) -> str:
    """What is wrong with an op in a data set's function, or ""."""
    state = _upstream.op_state(op)
    if state and parallel:
        return " in parallel calls: use tf.random.stateless_* with a seed from the element"
    if state == "kernel" and op.get_attr("seed") == op.get_attr("seed2") == 0:
        return f" without a seed: {_SEED}" if seeds else ""
    if "Dataset" not in op.type:
        return ""
    takes = zip(op.op_def.input_arg, op.inputs, strict=False)
    given = [tf.get_static_value(x) for one, x in takes if one.name in ("seed", "seed2")]
    if seeds and given and all(seed == 0 for seed in given):
        return f" without a seed: {_SEED}"
    ordered = any(one.name == "deterministic" for one in op.op_def.attr)
    if ordered and not op_determinism and op.get_attr("deterministic") == b"false":
        return " with deterministic=False: leave that out"
    return ""
