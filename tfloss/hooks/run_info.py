"""What a hook can know about one call of `Trainer.train`. Host code."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """One call of `Trainer.train`.

    Attributes:
      start: the step at which this call began.
      steps: the step to reach.
      batch_size: global examples a step, or None if unknown.
      steps_per_epoch: may have a fraction (1437 / 32); None if unknown.
    """

    start: int
    steps: int
    batch_size: int | None = None
    steps_per_epoch: float | None = None
