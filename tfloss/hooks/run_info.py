"""What a hook can know about one call of `Trainer.train`. Host code."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """What a hook can know about one call of `Trainer.train`.

    Attributes:
      start: The step at which the call began.
      steps: The step to reach.
      batch_size: Global examples in a step, or None if unknown.
      steps_per_epoch: Steps in an epoch, maybe with a fraction (1437 / 32); None if unknown.
      pending: `{step: names}` of the values of steps up to `start` that are not logged yet. The
        call logs them.
      rewound: Whether training goes back to a checkpoint that is not the newest. What was written
        for later steps is then another result, which must be kept.
    """

    start: int
    steps: int
    batch_size: int | None = None
    steps_per_epoch: float | None = None
    pending: Mapping[int, frozenset[str]] = dataclasses.field(default_factory=dict)
    rewound: bool = False
