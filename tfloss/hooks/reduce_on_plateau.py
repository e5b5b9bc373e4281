"""Lowers the learning rate when a metric no longer improves.

    Evaluate(test_set, {"accuracy": accuracy}, every=Every(epochs=1)),
    ReduceOnPlateau("val/accuracy", factor=0.5, patience=3)

Patience is a number of evaluations, that is, of logs of the metric.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfloss.evaluation.metrics import Mode
from tfloss.hooks.callback_checks import check_constant_rates
from tfloss.hooks.monitored_metric import MonitoredMetric, MonitoringHook
from tfloss.summary import Summary


class ReduceOnPlateau(MonitoringHook, own=True):
    """Multiplies the learning rate after `patience` evaluations without an improvement. Host.

    A value that is not finite is no improvement. Checkpoints hold the learning rate, the best value
    and the counts, so a resumed run lowers the rate where an uninterrupted one does. With several
    optimizer groups, all rates are lowered, or those of `groups`.

    Args:
      metric: Name of the metric as logged, such as "val/losses/total".
      factor: Factor of the learning rate, between 0 and 1.
      patience: Number of evaluations (logs of the metric), at least 1.
      min_delta: Difference that an improvement must exceed, at least 0.
      cooldown: Number of evaluations after a reduction that don't count, at least 0.
      min_rate: Lowest learning rate, at least 0.
      mode: "max" if higher values are better, "min" if lower ones are. None: see `EarlyStopping`.
      groups: Names of the optimizer groups whose rate is lowered. None: all.

    Raises:
      ValueError: An argument is out of its range. Before the first step: the learning rate is a
        schedule, there is no such group, or nobody knows the direction of the metric.
    """

    def __init__(
        self,
        metric: str,
        *,
        factor: float = 0.1,
        patience: int = 10,
        min_delta: float = 0.0,
        cooldown: int = 0,
        min_rate: float = 0.0,
        mode: Mode | None = None,
        groups: Sequence[str] | None = None,
    ):
        for name, value, good in (
            ("factor", factor, 0 < factor < 1),
            ("patience", patience, patience >= 1),
            ("cooldown", cooldown, cooldown >= 0),
            ("min_rate", min_rate, min_rate >= 0),
        ):
            if not good:
                rules = {"factor": "between 0 and 1", "patience": "at least 1"}
                rule = rules.get(name, "at least 0")
                raise ValueError(f"ReduceOnPlateau({name}={value!r}): {name} must be {rule}.")
        self.factor, self.patience = factor, patience
        self.cooldown, self.min_rate = cooldown, min_rate
        self._groups = [groups] if isinstance(groups, str) else groups
        self._metric = MonitoredMetric("ReduceOnPlateau", metric, mode, min_delta)

    def before_train(self) -> None:
        """Finds the mode, and checks that the learning rates can be set.

        Raises:
          ValueError: See the class.
        """
        optimizers = self.trainer.train_step.optimizers
        if unknown := [name for name in self._groups or () if name not in optimizers]:
            raise ValueError(
                f"ReduceOnPlateau(groups=...) names {unknown[0]!r}, which is no optimizer group. "
                f"There are: {', '.join(optimizers)}."
            )
        names = optimizers if self._groups is None else self._groups
        self._optimizers = {name: optimizers[name] for name in names}
        check_constant_rates("ReduceOnPlateau", self._optimizers)
        self._metric.start(self.trainer.hooks)
        self.state = self._metric.restored(self.state, self.trainer.logger)

    def on_log(self, step: int, scalars: Mapping[str, float], summaries: Sequence[Summary]) -> None:
        """Counts evaluations without an improvement, and lowers the rate after too many."""
        value = self._metric.value(step, scalars)
        if value is None:
            return
        state: dict[str, Any] = {"count": 0, "cooldown": 0} | self.state
        state |= self._metric.identity()
        cooling = state["cooldown"] > 0
        state["cooldown"] = max(0, state["cooldown"] - 1)
        if self._metric.is_improvement(value, state.get("best")):
            state |= {"best": value, "step": step, "count": 0}
        elif not cooling:
            state["count"] += 1
        if state["count"] >= self.patience:
            state |= {"count": 0, "cooldown": self.cooldown}
            self._reduce(step, state.get("best"))
        self.state = state

    def after_train(self) -> None:
        """Warns if the metric was never logged."""
        self._metric.warn_if_never_logged(self.trainer.error)

    def _reduce(self, step: int, best: float | None) -> None:
        for name, optimizer in self._optimizers.items():
            before = float(np.asarray(optimizer.learning_rate))
            after = max(before * self.factor, self.min_rate)
            if after >= before:
                continue
            optimizer.learning_rate = after
            of_group = f" of group {name!r}" if len(self.trainer.train_step.optimizers) > 1 else ""
            than = "" if best is None else f" than {best:.6g}"
            self.trainer.logger.info(
                f"step {step}: the learning rate{of_group} falls from {before:g} to {after:g}: "
                f"{self._metric.name} was not better{than} in {self.patience} evaluations"
            )
