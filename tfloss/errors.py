"""The errors that tfloss raises, each a subclass of the built-in error that fits.

Each message names what is at fault and says what to do.
"""

import math
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


class NonFiniteLossError(TflossError, FloatingPointError):
    """A loss became NaN or infinite. The update of that step was not applied.

    Attributes:
      step: Step that the update would have completed, 1 for the first update.
      losses: `{name: value}` of that step, means over replicas.
      batch: Batch of that step: a tuple with one element for each replica and micro-batch.
    """

    def __init__(self, step: int, losses: dict[str, float], batch: tuple[Any, ...] = ()):
        """Creates the error.

        Args:
          step: Step that the update would have completed.
          losses: `{name: value}` of that step, means over replicas.
          batch: One element for each replica and micro-batch.
        """
        bad = _causes([name for name, value in losses.items() if not math.isfinite(value)])
        values = ", ".join(f"{name} = {value:g}" for name, value in losses.items())
        super().__init__(
            f"Loss {', '.join(map(repr, bad))} is not finite at step {step} ({values}). "
            f"Training stopped before that update, so the weights are those of step {step - 1}."
        )
        self.step = step
        self.losses = losses
        self.batch = batch


def _causes(names: list[str]) -> list[str]:
    """Leaves out the names that only follow from others: the total, and norms of gradients."""
    norms = [name for name in names if name.partition("/")[0] == "gradient_norm"]
    own = [name for name in names if name != "total" and name not in norms]
    return own or [name for name in names if name == "total"] or norms
