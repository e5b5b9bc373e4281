"""Which batches are stacked in blocks, and how many steps a block holds. Host code."""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfloss.data.batch_queue import batch_shapes
from tfloss.data.batches import named_leaves, open_nest

# Three blocks exist at a time. Smaller ones take less memory, but make an MLP slower: what a call
# costs on the host is spread over fewer steps.
MAX_BLOCK_BYTES = 24 * 2**20
MAX_BLOCK_STEPS = 400
MIN_BLOCK_STEPS = 8  # shorter loops gain nothing from XLA
# The blocks' shape changes after this many consecutive batches of another shape; the number
# doubles with each change, since each shape may be a program to compile.
_BATCHES_BEFORE_CHANGE = 3


def reason_not_to_stack(spec: Any) -> str | None:
    """Returns why batches can't be stacked for XLA, or None if they can be.

    All tensors must be dense and numeric, with shapes that are static but for the number of
    examples.

    Args:
      spec: Nest of `tf.TypeSpec`s of a batch.
    """
    if reason := reason_not_to_compile(spec):
        return reason
    for path, one in open_nest(spec, "batch")[0]:
        if not isinstance(one, tf.TensorSpec):
            return f"{path} is a {type(one).__name__.removesuffix('Spec')}"
        shape: Any = one.shape
        if shape.rank is None or not shape[1:].is_fully_defined():
            return f"{path} has the shape {shape}, which isn't static"
    for path, one in named_leaves(spec, "batch"):
        if not isinstance(one, tf.TensorSpec):  # an extension type that holds such tensors
            return f"{path} is a {type(one).__name__.removesuffix('Spec')}"
    return None


def reason_not_to_compile(spec: Any) -> str | None:
    """Returns why XLA can't compile a step of such batches, as far as their types tell, or None.

    Args:
      spec: Nest of `tf.TypeSpec`s of a batch.
    """
    for path, one in open_nest(spec, "batch")[0]:
        dtype = getattr(one, "dtype", None)
        if dtype == tf.string:
            return f"{path} holds strings"
        if isinstance(one, tf.data.DatasetSpec) or dtype in (tf.variant, tf.resource):
            return f"{path} is a {type(one).__name__.removesuffix('Spec')} of no numeric type"
    return None


class BlockSize:
    """Decides on the shape of the batches in a block and on the number of steps.

    Args:
      batches_per_step: Number of batches in a step.
      alignment: Number of steps, of which a block should hold a multiple, if it fits.

    Attributes:
      template: A batch of the shape that is stacked; None before the first batch.
      repeated: A batch of the shape that should be stacked instead, or None.
      steps: Number of steps in a full block; 0 before the first batch.
    """

    def __init__(self, batches_per_step: int, alignment: int):
        """Waits for the first batch, which decides."""
        self._batches_per_step, self._alignment = batches_per_step, alignment
        self.template: Any = None
        self.repeated: Any = None
        self.steps = 0
        self._last_shapes: list[tf.TensorShape] = []  # of the last single batch
        self._repeats, self._needed = 0, _BATCHES_BEFORE_CHANGE

    @property
    def batches(self) -> int:
        """Number of batches in a full block."""
        return self.steps * self._batches_per_step

    @property
    def aligned(self) -> bool:
        """Whether a block holds a multiple of `alignment` steps."""
        return self._alignment <= self.steps

    @property
    def shapes(self) -> list[tf.TensorShape]:
        """Shapes of the tensors of a batch that is stacked."""
        return batch_shapes(self.template)

    def adopt(self, batch: Any) -> None:
        """Makes the shape of a batch the one that is stacked from now on."""
        self.template, self.repeated = batch, None
        size = sum(x.dtype.size * int(tf.size(x)) for x in tf.nest.flatten(batch))
        fitting = MAX_BLOCK_BYTES // max(1, size * self._batches_per_step)
        self.steps = max(1, min(MAX_BLOCK_STEPS, fitting))
        if self._alignment < self.steps:
            self.steps -= self.steps % self._alignment

    def expected(self, spec: Any, rows: int | None) -> "BlockSize | None":
        """Returns the size that the next block is expected to have.

        Args:
          spec: Nest of `tf.TensorSpec`s of a batch.
          rows: What takes the place of unknown dimensions before the first batch: the likely number
            of examples.

        Returns:
          This size, or before the first batch another one; None if `rows` is needed and None.
        """
        if self.template is not None:
            return self
        shapes = [[d or rows for d in one.shape] for one in tf.nest.flatten(spec)]
        if any(None in shape for shape in shapes):
            return None
        pairs = zip(shapes, tf.nest.flatten(spec), strict=True)
        zeros = [tf.zeros(shape, one.dtype) for shape, one in pairs]
        size = BlockSize(self._batches_per_step, self._alignment)
        size.adopt(tf.nest.pack_sequence_as(spec, zeros))
        return size

    def block(self) -> Any:
        """Returns zeros of the shapes of a block: a nest of tensors [batches of a full block, ...].

        It can be called after the first batch, or for an expected size.
        """
        many = self.batches
        return tf.nest.map_structure(
            lambda one: tf.zeros([many, *one.shape], one.dtype), self.template
        )

    def count_single(self, batch: Any) -> None:
        """Takes a single batch into account: several consecutive ones of one shape are `repeated`.

        Args:
          batch: The batch.
        """
        shapes = batch_shapes(batch)
        self._repeats = self._repeats + 1 if shapes == self._last_shapes else 1
        self._last_shapes = shapes
        if self._repeats >= self._needed and shapes != self.shapes:
            self._needed *= 2
            self.repeated = batch

    def count_block(self) -> None:
        """Takes a block into account: the next single batch follows no other."""
        self._repeats = 0

    def state(self) -> dict[str, Any] | None:
        """Returns what decides which batches are stacked, as JSON values; None before the first."""
        if self.template is None:
            return None
        next_one = self.template if self.repeated is None else self.repeated
        return {
            "shapes": [list(shape) for shape in batch_shapes(next_one)],
            "last_shapes": [list(shape) for shape in self._last_shapes],
            "repeats": self._repeats,
            "needed": self._needed,
        }

    def restore(self, state: Mapping[str, Any], spec: Any) -> None:
        """Restores what `state` returned, so that a resumed run stacks the same batches.

        Args:
          state: The state. It is ignored if it belongs to other batches.
          spec: Nest of `tf.TensorSpec`s of a batch.
        """
        specs = tf.nest.flatten(spec)
        if len(state["shapes"]) != len(specs):
            return
        pairs = zip(state["shapes"], specs, strict=True)
        zeros = [tf.zeros(shape, one.dtype) for shape, one in pairs]
        self.adopt(tf.nest.pack_sequence_as(spec, zeros))
        self._last_shapes = [tf.TensorShape(shape) for shape in state["last_shapes"]]
        self._repeats, self._needed = int(state["repeats"]), int(state["needed"])
