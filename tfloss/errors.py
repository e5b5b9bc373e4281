"""The errors that tfloss raises, each a subclass of the built-in error that fits.

Each message names what is at fault and says what to do.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any


class TflossError(Exception):
    """Base class of the errors that tfloss raises on purpose."""


class LossError(TflossError, ValueError):
    """A reported loss can't be minimised. The message has its name."""


class SummaryError(TflossError, ValueError):
    """A summary can't be recorded. The message has its name and the line that records it."""


class DataError(TflossError, ValueError):
    """A data set can't be used for training or evaluation, or it ended too early."""


class ModelError(TflossError, ValueError):
    """A model or optimizer can't be trained as it is, for example because of its variables."""


class CheckpointError(TflossError, ValueError):
    """A checkpoint can't be written, or it does not fit the model."""


class CheckpointWriteError(CheckpointError, OSError):
    """A checkpoint could not be written.

    The message has the path, the OS error, the free disk space and the newest intact checkpoint.
    """


class WorkdirError(TflossError, OSError):
    """The workdir can't be used, or not any more. The message names the file and what to do."""


class CheckpointDeletedError(CheckpointError):
    """A checkpoint is not there, or was deleted or replaced while it was read. It is not corrupt.

    A trainer beside this process deletes old checkpoints. Read a newer one.
    """


class WorkdirInUseError(TflossError, RuntimeError):
    """Another trainer uses the workdir. The message has its process, its host and since when."""


class ClusterError(TflossError, ValueError):
    """The environment variables that describe the cluster are invalid or incomplete.

    The message names the variable and how to fix it.
    """


class MissingWorkersError(TflossError, TimeoutError):
    """Workers of the cluster did not answer in time. The message has their addresses."""


class MetricError(TflossError, ValueError):
    """A metric of an evaluation failed. The message describes the batch and the predictions."""


class ExportError(TflossError, ValueError):
    """A model can't be exported for inference, or its export computes something else."""


class WorkerError(TflossError, RuntimeError):
    """The workers of a cluster don't do the same. The message has the difference, by worker."""


class Preempted(SystemExit):
    """The run received SIGTERM. `train` raises it on all workers after the same step.

    A checkpoint was saved before. A script that does not catch the error ends with exit code 75
    (EX_TEMPFAIL: start it again). It is not an `Exception`, so that `except Exception` does not
    keep the process alive.

    Attributes:
      CODE: Exit code.
    """

    CODE = 75

    def __init__(self) -> None:
        """Creates the error with its exit code."""
        super().__init__(self.CODE)


class TimeLimitReached(Preempted):
    """The time limit of a run is reached (`tfloss.hooks.TimeLimit`).

    It behaves like SIGTERM, but the exit code is 124, as that of the command `timeout`.
    """

    CODE = 124


class Aborted(KeyboardInterrupt):
    """Ctrl-C was pressed twice. This is raised at once, maybe within a step; nothing is saved."""


@dataclasses.dataclass(frozen=True)
class NonFiniteGradient:
    """A gradient that is not finite.

    Attributes:
      group: The optimizer group that it would have updated.
      losses: Names of the losses whose own gradient is not finite; empty if there is none, or if
        they could not be examined.
      variables: Paths of the variables with NaN or infinity in the gradient of one of these losses.
      largest: The largest magnitude of the gradients of single losses. NaN or infinity if they are
        not finite, or could not be examined.
    """

    group: str
    losses: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    largest: float = math.nan

    def __str__(self) -> str:
        """Describes it for an error message."""
        if self.losses:
            return (
                f"of loss {', '.join(map(repr, self.losses))} for {listed(self.variables)} "
                f"(optimizer group {self.group!r})"
            )
        if math.isfinite(self.largest):
            return (
                f"of optimizer group {self.group!r} (each loss has a finite gradient, up to "
                f"{self.largest:g}, but their sum or norm overflows float32)"
            )
        return f"of optimizer group {self.group!r} (which losses and variables, is not known)"


class NonFiniteLossError(TflossError, FloatingPointError):
    """A loss or a gradient became NaN or infinite. No update of that step was applied.

    Attributes:
      step: Step that the update would have completed, 1 for the first update.
      losses: `{name: value}` of that step, means over replicas.
      batch: Batch of that step: a tuple with one element for each replica and micro-batch.
      gradients: The gradients that are not finite, one for each optimizer group, if all losses are
        finite.
      weights: Paths of the model's variables that were not finite already before that step.
    """

    def __init__(
        self,
        step: int,
        losses: dict[str, float],
        batch: tuple[Any, ...] = (),
        *,
        gradients: tuple[NonFiniteGradient, ...] = (),
        weights: tuple[str, ...] = (),
    ):
        """Creates the error.

        Args:
          step: Step that the update would have completed.
          losses: `{name: value}` of that step, means over replicas.
          batch: One element for each replica and micro-batch.
          gradients: What is not finite if all losses are finite.
          weights: Variables of the model that were not finite before that step.
        """
        values = ", ".join(f"{name} = {value:g}" for name, value in losses.items())
        bad = [name for name, value in losses.items() if not math.isfinite(value)]
        causes = [name for name in bad if name != "total"] or bad  # the total only follows
        if causes:
            what = f"Loss {', '.join(map(repr, causes))} is not finite at step {step} ({values})"
        else:
            where = f": {'; '.join(map(str, gradients))}" if gradients else ""
            what = (
                f"The gradient is not finite at step {step}, but the losses are ({values}){where}"
            )
        text = f"{what}. Training stopped before that update, so the weights are those of step "
        text += f"{step - 1}."
        if weights:
            text += (
                f" Some of them are not finite: {listed(weights)}. An earlier update or the "
                "initial values made them so."
            )
        super().__init__(text)
        self.step = step
        self.losses = losses
        self.batch = batch
        self.gradients = gradients
        self.weights = weights


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names in quotes for an error message, the first ones only if they are many.

    Args:
      names: The names.
      most: How many are listed.
    """
    shown = ", ".join(map(repr, names[:most]))
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
