"""Evaluates during training, so that validation curves appear beside the training curves.

    Evaluate(val_set, {"accuracy": accuracy}, every=Every(epochs=1), losses=True)

It logs val/accuracy, val/losses/total and val/losses/<name>.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import keras

from tfloss.data.adapted import adapted
from tfloss.data.distributed import Data
from tfloss.evaluation.evaluator import finite_dataset
from tfloss.evaluation.metrics import (
    BoundMetric,
    HostMetric,
    Mode,
    check_metrics,
    metric_mode,
    own_metrics,
    own_names,
)
from tfloss.hooks.base import Hook
from tfloss.hooks.every import Every, OnSteps, check_trigger


class Evaluate(Hook, own=True):
    """Runs `Trainer.evaluate` when due, and once more at the end if the last result is older.

    Host. Training waits for it. After an error it doesn't run.

    Args:
      data: Batches, in any form that `Trainer.evaluate` accepts. Finite.
      metrics: Metrics by name, as for `Trainer.evaluate`. None: those of the model's method
        `evaluation_metrics()`, as a model of `tfloss.adapters.from_compiled` has it.
      every: When to evaluate. None: only at the end.
      name: Prefix of the logged names. Two Evaluate hooks need different ones.
      losses: Whether to log validation losses too, as `<name>/losses/<loss>`.
      ema: Whether to evaluate the moving averages of the weights (`Trainer(ema=...)`).
      batch_size: The examples in a batch, for arrays and tables.

    Raises:
      DataError: `batch_size` is missing, or the data can't be used.
      TypeError: Something is not a metric, or can't be reset before each evaluation.
      ValueError: `every` is not a trigger, `name` is empty or ends with "/", or two names stand
        for one metric.
    """

    def __init__(
        self,
        data: Data,
        metrics: Mapping[str, BoundMetric | HostMetric] | None = None,
        *,
        every: Every | OnSteps | None = None,
        name: str = "val",
        losses: bool = False,
        ema: bool = False,
        batch_size: int | None = None,
    ):
        check_trigger(every, "Evaluate")
        if not name or name.endswith("/"):
            raise ValueError(f"Evaluate(name={name!r}): name must be like 'val', without a '/'.")
        self.data = adapted(data, batch_size)
        self.metrics = None if metrics is None else check_metrics(metrics)
        self.every = every
        self.name = name
        self.losses = losses
        self.ema = ema
        self._owned: tuple[keras.Model, Mapping[str, BoundMetric]] | None = None
        self._results: tuple[int, dict[str, float]] | None = None  # step, values

    def before_train(self) -> None:
        """Checks the data, and that no other Evaluate hook logs under the same name.

        Raises:
          DataError: The data are no data set, or known to be infinite.
          ValueError: Another hook has the name.
        """
        finite_dataset(self.data, self.trainer.strategy)
        for other in self.trainer.hooks:
            if isinstance(other, Evaluate) and other is not self and other.name == self.name:
                raise ValueError(
                    f"Two Evaluate hooks log under the name {self.name!r}, so their values would "
                    "be mixed. Give one of them another name: Evaluate(..., name='test')."
                )

    def logs(self, name: str) -> bool:
        """Returns whether this hook logs a curve of this name.

        Args:
          name: Name as logged, such as "val/accuracy".
        """
        known = self.is_loss(name) or self._metric_of(name) is not None
        return known or (self.names_itself and name.startswith(f"{self.name}/"))

    def mode_of(self, name: str) -> Mode | None:
        """Returns whether lower or higher values of a curve are better; None if nobody knows.

        Args:
          name: Name of a curve that this hook logs.
        """
        key = self._metric_of(name)
        if key is not None:
            return metric_mode(self._metrics[key])
        if self.is_loss(name):
            return "min"
        return self._own_names.get(name.removeprefix(f"{self.name}/"))

    def known_names(self) -> list[str]:
        """Returns the names of curves that are known before an evaluation."""
        losses = [f"{self.name}/losses/total"] if self.losses else []
        keys = [key for key, metric in self._metrics.items() if own_names(metric) is None]
        return [f"{self.name}/{key}" for key in [*keys, *self._own_names]] + losses

    def results_at(self, step: int) -> dict[str, float]:
        """Returns what this object found at a step, by name; empty if it was not evaluated then.

        Args:
          step: The number of completed updates.
        """
        if self._results is None or self._results[0] != step:
            return {}
        return self._results[1]

    @property
    def names_itself(self) -> bool:
        """Whether a metric names its results itself, so that any curve may be one of them."""
        return any(own_names(metric) is not None for metric in self._metrics.values())

    @property
    def _metrics(self) -> Mapping[str, BoundMetric | HostMetric]:
        """The metrics: those given, or those of the model, once there is a trainer."""
        trainer = getattr(self, "trainer", None)
        if self.metrics is not None or trainer is None:
            return self.metrics or {}
        if self._owned is None or self._owned[0] is not trainer.model:
            self._owned = trainer.model, own_metrics(trainer.model)
        return self._owned[1]

    @property
    def _own_names(self) -> dict[str, Mode | None]:
        """The names that are known of the metrics that name their results, with their modes."""
        found: dict[str, Mode | None] = {}
        for metric in self._metrics.values():
            found |= own_names(metric) or {}
        return found

    def is_loss(self, name: str) -> bool:
        """Returns whether a name is that of a validation loss, if the losses are evaluated."""
        return self.losses and name.startswith(f"{self.name}/losses/")

    def _metric_of(self, name: str) -> str | None:
        """Returns the key of the metric that logs a curve: itself, or with a part of its result."""
        keys = [k for k in self._metrics if f"{name}/".startswith(f"{self.name}/{k}/")]
        return max(keys, key=len, default=None)

    def after_step(self, step: int) -> None:
        """Evaluates and logs the results."""
        # Before the log, so that a checkpoint saved by a hook in on_log has it.
        self.state["step"] = step
        results = self.trainer.evaluate(self.data, self._metrics, losses=self.losses, ema=self.ema)
        self._results = step, results
        self.trainer.log(step, {f"{self.name}/{key}": value for key, value in results.items()})

    def dry_run(self, directory: Path) -> Sequence[str]:
        """Evaluates the first batch."""
        batch = finite_dataset(self.data, self.trainer.strategy).take(1)
        results = self.trainer.evaluate(batch, self._metrics, losses=self.losses, ema=self.ema)
        lines = [f"  {self.name}/{name} {value:.5g}" for name, value in results.items()]
        return [f"One batch of {self.name!r} was evaluated", *lines]

    def after_train(self) -> None:
        """Evaluates after the last step of a run without an error, unless it already did."""
        if self.trainer.error is None and self.state.get("step") != self.trainer.step:
            self.after_step(self.trainer.step)
