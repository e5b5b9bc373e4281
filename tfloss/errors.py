"""The errors that tfloss raises, each a subclass of the built-in that fits."""

import math


class TflossError(Exception):
    """Base of all errors that tfloss raises on purpose."""


class LossError(TflossError, ValueError):
    """A loss report that can't be optimised: its name, what is wrong, what to do."""


class SummaryError(TflossError, ValueError):
    """A summary that can't be recorded: its name, where it was called, the way out."""


class DataError(TflossError, ValueError):
    """A data set that can't be trained on, or that ended too early."""


class ModelError(TflossError, ValueError):
    """A model or optimizer that can't be trained as it is (strategy scope, variables)."""


class CheckpointError(TflossError, ValueError):
    """A checkpoint that can't be written, or that doesn't fit the model."""


class CheckpointWriteError(CheckpointError, OSError):
    """A checkpoint that the disk doesn't take: its path, the reason, the room, what is left."""


class WorkdirInUseError(TflossError, RuntimeError):
    """A workdir in which another trainer is at work: its process, its host, since when."""


class ClusterError(TflossError, ValueError):
    """An environment that names the workers of a run wrongly or halfway: the variable, the way."""


class MissingWorkersError(TflossError, TimeoutError):
    """Workers of the cluster that have not answered in time: their addresses, what was tried."""


class MetricError(TflossError, ValueError):
    """A metric of an evaluation that can't be computed: its name, and what there is to use."""


class ExportError(TflossError, ValueError):
    """A model that can't be exported for inference, or an export that disagrees with it."""


class WorkerError(TflossError, RuntimeError):
    """Workers of one cluster that don't do the same thing: what differs, and on which."""


class Preempted(SystemExit):
    """The machine is wanted back (SIGTERM): raised out of `train`, on all workers after the
    same step, when a checkpoint is saved.

    A script that doesn't catch it ends with exit code 75 (EX_TEMPFAIL: start me again). It is
    not an Exception, so that `except Exception` does not keep the machine.
    """

    CODE = 75

    def __init__(self) -> None:
        super().__init__(self.CODE)


class TimeLimitReached(Preempted):
    """The time that a run was given is up (`tfloss.hooks.TimeLimit`): like SIGTERM, with another
    exit code, 124, which is what the command `timeout` uses.
    """

    CODE = 124


class Aborted(KeyboardInterrupt):
    """A second Ctrl-C: raised where it comes, maybe within a step, so nothing is to be saved."""


class NonFiniteLossError(TflossError, FloatingPointError):
    """A loss became NaN or infinite. The update of that step was not applied.

    Attributes:
      step: the step that would have been completed (1 for the first update).
      losses: `{name: value}` of that step, as reported (means over replicas).
      batch: the batch of that step: a tuple with one for each replica.
    """

    def __init__(
        self,
        step: int,
        losses: dict[str, float],
        batch: tuple = (),
    ):
        bad = _culprits([name for name, value in losses.items() if not math.isfinite(value)])
        values = ", ".join(f"{name} = {value:g}" for name, value in losses.items())
        super().__init__(
            f"Loss {', '.join(map(repr, bad))} is not finite at step {step} ({values}). "
            "Training stopped before that update, so the weights are those of step "
            f"{step - 1}."
        )
        self.step = step
        self.losses = losses
        self.batch = batch


def _culprits(names: list[str]) -> list[str]:
    """The names without those that only follow: losses make the total, that the gradients."""
    norms = [name for name in names if name.partition("/")[0] == "gradient_norm"]
    own = [name for name in names if name != "total" and name not in norms]
    return own or [name for name in names if name == "total"] or norms
