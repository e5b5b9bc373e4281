"""What one forward and backward pass computes, for code that looks at it and changes nothing.

train_step(batch, TraceOptions(observe=seen.append))
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfloss.forward.context import ForwardContext
from tfloss.forward.losses import LossWeights


@dataclasses.dataclass(frozen=True)
class Observation:
    """The tensors of one pass. Replica code, traced: they are valid while the pass is traced.

    Attributes:
      forward: Replica code; takes this replica's batch, returns or adds losses.
      batch: This replica's batch.
      returned: The value that the training forward returned.
      losses: `{name: float32 scalar}`.
      weights: The weights of the losses.
      assigned: `{group: names of the losses that train it}`.
      context: The context of the forward pass.
      variables: `{group: variables that it trains}`.
      gradients: `{group: gradients of these variables}` of the groups that are due; None for a
        variable that no loss reaches.
      untracked: Trainable variables of the forward pass that the model doesn't know.
    """

    forward: Callable[[Any], Any]
    batch: Any
    returned: Any
    losses: Mapping[str, tf.Tensor]
    weights: LossWeights
    assigned: Mapping[str, Sequence[str]]
    context: ForwardContext
    variables: Mapping[str, Sequence[Any]]
    gradients: Mapping[str, Sequence[Any]]
    untracked: Sequence[tf.Variable]
