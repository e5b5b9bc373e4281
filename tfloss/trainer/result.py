"""The result of a call of `Trainer.train`. Host code."""

import dataclasses

from tfloss.engine.engine import StepLogs
from tfloss.step.output import TOTAL


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """The result of a call of `Trainer.train`.

    Attributes:
      step: The number of completed updates.
      losses: `{name: value}` of the last step, and `total`; empty if no step was run.
      reason: Why training stopped before the step that was asked for, or None.
    """

    step: int
    losses: dict[str, float]
    reason: str | None = None


def last_losses(block: StepLogs | None) -> dict[str, float]:
    """`{name: value}` of the last step of a block, `total` last; empty without one."""
    if block is None:
        return {}
    row = dict(zip(block.names, block.rows()[-1].tolist(), strict=True))
    prefix = "losses/"
    losses = {k.removeprefix(prefix): v for k, v in row.items() if k.startswith(prefix)}
    return {**{k: v for k, v in losses.items() if k != TOTAL}, TOTAL: losses[TOTAL]}
