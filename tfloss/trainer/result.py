"""The result of a call of `Trainer.train`. Host code."""

import dataclasses

from tfloss.engine.engine import StepLogs


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


def last_losses(logs: StepLogs | None) -> dict[str, float]:
    """Returns the losses of the last of some steps.

    Args:
      logs: What the steps reported, or None if no step was run.

    Returns:
      `{name: value}`, with `total` last; empty without steps.
    """
    if logs is None:
        return {}
    row = dict(zip(logs.names, logs.rows()[-1].tolist(), strict=True))
    return {name: row[tag] for tag, name in logs.losses.items()}
