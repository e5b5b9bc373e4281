"""Finds what makes a batch of a `Source` depend on more than its seed and its position. Host code.

A resumed run starts in the middle of a `Source`. So it sees the batches of the whole run only if no
batch depends on what was drawn for the batches before it. TensorFlow's ops are found in the traced
functions; Python code is found out by calling it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfloss.data import batches
from tfloss.data.examples import READ_ITEMS, SequenceExamples
from tfloss.data.nondeterminism import python_ops, stateful_ops
from tfloss.inspect.python_randomness import RandomStates

_REMEDY = "use tf.random.stateless_* with the seed that map(example, seed) or batch_map gets"
_ITEM_REMEDY = "make an item depend on its index alone, and augment in map(example, seed)"


def source_randomness(
    open_at: Callable[[int], Any], functions: Sequence[Any], examples: Any
) -> list[str]:
    """Lists what a resumed run would not repeat. It may read an item or three batches.

    Args:
      open_at: Returns the data set from a batch on.
      functions: The user's `map` and `batch_map`, or None.
      examples: The examples of the source.

    Returns:
      For each op, function or generator, what it is and what to use instead.
    """
    states = RandomStates(*functions)
    dataset = open_at(0)
    found = [
        f"map or batch_map draws from {one} once, when it is traced: {_REMEDY}"
        for one in states.moved()
    ]
    found += stateful_ops(dataset, _REMEDY)
    if isinstance(examples, SequenceExamples):
        found += [f"{one}: {_ITEM_REMEDY}" for one in examples.randomness()]
    python = python_ops(dataset, without=READ_ITEMS)
    if python and not found:
        before = RandomStates(*functions)
        same = _same_in_two_ways(open_at)
        if moved := before.moved():
            found.append(f"{', '.join(python)} draws from {', '.join(moved)}: {_REMEDY}")
        elif not same:
            found.append(f"{', '.join(python)} returns something else each time: {_REMEDY}")
    states.restore()
    return found


def _same_in_two_ways(open_at: Callable[[int], Any]) -> bool:
    """Whether a batch is the same one if it is read as the second or as the first one."""
    both = list(open_at(0).take(2))
    again = list(open_at(len(both) - 1).take(1))
    pair = [tf.nest.flatten(one, expand_composites=True) for one in (both[-1], again[0])]
    return all(map(batches.equal, *pair))
