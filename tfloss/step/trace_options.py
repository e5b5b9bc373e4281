"""The options that one trace of a training step is made with.

train_step(batch)                                                # the defaults
train_step(batch, TraceOptions(recording=True, mode="step"))
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, Protocol

import tensorflow as tf

from tfloss.data.batches import MicroBatches
from tfloss.step.backward import Backward
from tfloss.step.finite_check import FiniteCheck
from tfloss.step.observation import Observation
from tfloss.step.watched import WatchRequest

Mode = Literal["graph", "step", "loop"]
"""How the engine runs steps.

"graph": TensorFlow runs each op of each step. "step": the forward and backward pass of each
replica are one XLA program. "loop": many steps and their updates are one XLA program.
"""

Jit = bool | Literal["loop", "auto"]
"""What `Trainer(jit=)` takes: False is "graph", True is "step", "auto" measures the modes."""


Guarded = Literal["nothing", "losses", "losses and gradients"]
"""What must be finite, or training stops before the update."""


class Guard(Protocol):
    """Stops a step before its update if a value is not finite."""

    def snapshot(self) -> Any:
        """Reads the state that a forward pass may change. Cross-replica code, traced.

        Returns:
          The values at this point of the trace, as the guard itself wants them.
        """
        ...

    def snapshot_all(self) -> Any:
        """Reads all that a step may change, for steps that may update more than once. Traced.

        Returns:
          The same.
        """
        ...

    def __call__(
        self,
        check: FiniteCheck,
        micro_batches: MicroBatches,
        before: Any,
        start: Any,
        backward: Backward,
    ) -> tf.Tensor | tf.Operation:
        """Checks the values of a step. Cross-replica code, traced.

        Args:
          check: The values, and whether the check passes.
          micro_batches: The batches of the step.
          before: Result of `snapshot`, taken before the forward pass.
          start: Result of `snapshot_all`, taken before the step, or None.
          backward: The pass that computed the values.

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
      guard: A check of losses and gradients, before the update. None: no check. A step that is
        compiled as a whole can't have one.
      check_gradients: Whether gradients are among the values that must be finite, even if their
        norms are not computed anyway.
      observe: Is given what each forward and backward pass computes, or None.
      watch: What `hooks.Watch` wants to know of the step, or None.
    """

    recording: bool = False
    mode: Mode = "graph"
    guard: Guard | None = None
    check_gradients: bool = False
    observe: Callable[[Observation], None] | None = None
    watch: WatchRequest | None = None

    def __post_init__(self) -> None:
        """Refuses a guard inside of a compiled loop, where XLA would drop the assertion."""
        if self.mode == "loop" and self.guard is not None:
            raise ValueError("A step traced with mode='loop' can't have a guard: use guard=None.")
