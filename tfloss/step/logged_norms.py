"""The norm of the gradient at the steps that are logged, where no step needs it. Traced.

To compute it at each step costs up to 28 % of a step of small kernels, a branch that is taken at
one of a hundred steps costs less than 1 %. So the curve has the norm of the logged step alone, and
its name says so: `gradient_norm_of_step`. The norms of all steps, which clipping needs anyway, have
the curve `gradient_norm`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfloss.forward.streaming_means import weight_column
from tfloss.step.output import OutputBuilder
from tfloss.step.update import global_norm

TAG = "gradient_norm_of_step"


def norms_if_logged(
    step: tf.Tensor, log_every: int, gradients: Mapping[str, Callable[[], list[Any]]]
) -> dict[str, list[tf.Tensor]]:
    """Computes the global norms of gradients if the step is a multiple of `log_every`.

    Args:
      step: int64 scalar, the number of updates completed before this one.
      log_every: Steps between logs.
      gradients: For each group that is due, a function that returns its gradients.

    Returns:
      For each of these groups, the norm or 0, and whether it was computed: float32 scalars.
    """
    logged = tf.equal(tf.math.floormod(step + 1, log_every), 0)

    def compute() -> list[tf.Tensor]:
        return [global_norm(each()) for each in gradients.values()]

    norms = tf.cond(logged, compute, lambda: [tf.constant(0.0) for _ in gradients])
    weight = tf.cast(logged, tf.float32)
    return {name: [norm, weight] for name, norm in zip(gradients, norms, strict=True)}


def add_norms(
    output: OutputBuilder, tags: Mapping[str, str], norms: Sequence[Sequence[tf.Tensor]]
) -> None:
    """Adds the norms to the output of the step, as means that are weighted by 0 or 1.

    Args:
      output: Output of the step so far.
      tags: `{group: what its name adds to the tag}`.
      norms: For each group, its norm and weight, as above; empty if there are none.
    """
    for tag, pair in zip(tags.values(), norms, strict=False):
        for name, value in zip((TAG + tag, weight_column(TAG + tag)), pair, strict=True):
            output.add_scalar(name, value)
