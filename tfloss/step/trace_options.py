"""The options that one trace of a training step is made with.

train_step(batch)                                                # the defaults
train_step(batch, TraceOptions(recording=True, mode="step"))
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import tensorflow as tf

from tfloss.data.batches import MicroBatches

Mode = Literal["graph", "step", "loop"]
"""How the engine runs steps.

"graph": TensorFlow runs each op of each step. "step": the forward and backward pass of each
replica are one XLA program. "loop": many steps and their updates are one XLA program.
"""

Jit = bool | Literal["loop", "auto"]
"""What `Trainer(jit=)` takes: False is "graph", True is "step", "auto" measures the modes."""


class Guard(Protocol):
    """Stops a step before its update if a value is not finite."""

    def snapshot(self) -> Any:
        """Reads the state that a forward pass may change. Cross-replica code, traced.

        Returns:
          The values at this point of the trace, as the guard itself wants them.
        """
        ...

    def __call__(
        self,
        names: Sequence[str],
        values: tf.Tensor,
        micro_batches: MicroBatches,
        before: Any,
        tolerated: tf.Tensor | None,
    ) -> tf.Tensor | tf.Operation:
        """Checks the values of a step. Cross-replica code, traced.

        Args:
          names: Names of the values, for the error message.
          values: float32 [names], the same on all replicas.
          micro_batches: The batches of the step.
          before: Result of `snapshot`, taken before the forward pass.
          tolerated: bool scalar; if it is true, the check passes in any case. None: false.

        Returns:
          An op or tensor that fails if the check does. The update must depend on it.
        """
        ...


@dataclasses.dataclass(frozen=True)
class TraceOptions:
    """Options of one trace of a `TrainStep`.

    Attributes:
      recording: Whether the step computes the model's summaries.
      mode: "step" compiles forward and backward pass of each replica with XLA. In the mode "loop"
        the caller compiles the step as a whole.
      guard: A check of the losses, before the update. None: no check. A step that is compiled as
        a whole can't have one.
    """

    recording: bool = False
    mode: Mode = "graph"
    guard: Guard | None = None

    def __post_init__(self) -> None:
        """Refuses a guard inside of a compiled loop, where XLA would drop the assertion."""
        if self.mode == "loop" and self.guard is not None:
            raise ValueError("A step traced with mode='loop' can't have a guard: use guard=None.")
