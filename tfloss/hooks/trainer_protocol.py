"""What a hook may use of the trainer. Host code.

`Hook.trainer` has this type, so that hooks depend on what is listed here and not on `Trainer`,
which is built on top of them.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import keras
import tensorflow as tf

from tfloss.checkpoint.background import BackgroundWriter
from tfloss.checkpoint.directory import CheckpointDirectory
from tfloss.common.logger import ChiefLogger
from tfloss.distribute.agreement import Agreement
from tfloss.hooks.run_info import RunInfo
from tfloss.step.trace_options import Mode
from tfloss.step.train_step import TrainStep
from tfloss.summary import Summary


class StopwatchProtocol(Protocol):
    """Where the time of a run goes."""

    def seconds(self) -> dict[str, float]:
        """`{kind: seconds}` since the start of the run."""
        ...

    def fractions(self, since: dict[str, float] | None = None) -> dict[str, float]:
        """`{kind: fraction}` of the time since the start, or since an earlier `seconds()`."""
        ...


class MeansProtocol(Protocol):
    """Means of what the steps report, since a step that the hook chooses."""

    def restart(self, step: int) -> None:
        """Starts a new span after `step` completed updates."""
        ...

    def values(self) -> dict[str, float]:
        """`{tag: mean}` since then."""
        ...

    def state(self) -> dict[str, Any]:
        """The sums so far, for the state of a hook."""
        ...

    def restore(self, state: Mapping[str, Any] | None, step: int) -> None:
        """Restores what `state` returned, if it belongs to `step`."""
        ...


class WindowProtocol(Protocol):
    """The steps that are not logged yet."""

    def __bool__(self) -> bool:
        """Whether there are any."""
        ...

    def running_means(self) -> MeansProtocol:
        """Means over spans that the hook chooses, of all steps from now on."""
        ...


class TrainerProtocol(Protocol):
    """The part of `tfloss.Trainer` that hooks use; see there for what each member does."""

    model: keras.Model
    optimizer: Any
    strategy: tf.distribute.Strategy
    workdir: Path | None
    checkpoints: CheckpointDirectory | None
    train_step: TrainStep
    agreement: Agreement
    clock: Callable[[], float]
    logger: ChiefLogger
    hooks: list[Any]
    state: Any  # a `CheckpointedVariables`, which is built on top of hooks

    @property
    def step(self) -> int:
        """Completed updates."""
        ...

    @property
    def run(self) -> RunInfo:
        """What can be known about the current call of `train`."""
        ...

    @property
    def error(self) -> BaseException | None:
        """The error that the call of `train` ended with, or None."""
        ...

    @property
    def mode(self) -> Mode | None:
        """The mode that steps run in, or None while modes are measured."""
        ...

    @property
    def window(self) -> WindowProtocol:
        """The steps that are not logged yet; false if there are none."""
        ...

    @property
    def stopwatch(self) -> StopwatchProtocol:
        """Where the time of the run goes."""
        ...

    @property
    def writer(self) -> BackgroundWriter | None:
        """What writes checkpoints in the background."""
        ...

    def evaluate(
        self,
        data: Any,
        metrics: Mapping[str, Any] | None = None,
        *,
        losses: bool = False,
        ema: bool = False,
    ) -> dict[str, float]:
        """Runs an evaluation."""
        ...

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the model has the moving averages of its weights."""
        ...

    def log(
        self, step: int, scalars: Mapping[str, float], summaries: Sequence[Summary] = ()
    ) -> None:
        """Gives values to every hook's `on_log`."""
        ...

    def stop(self, reason: str) -> None:
        """Ends training after the current step."""
        ...

    def save_checkpoint(self) -> Path:
        """Saves a checkpoint."""
        ...
