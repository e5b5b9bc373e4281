"""Stops training when a metric no longer improves.

    Evaluate(test_set, {"accuracy": accuracy}, every=Every(epochs=1)),
    EarlyStopping("val/accuracy", patience=5)

Patience is a number of evaluations, that is, of logs of the metric.
"""

from collections.abc import Mapping, Sequence

from tfloss.evaluation.metrics import Mode
from tfloss.hooks.monitored_metric import MonitoredMetric, MonitoringHook
from tfloss.summary import Summary


class EarlyStopping(MonitoringHook, own=True):
    """Stops after `patience` consecutive evaluations without an improvement. Host.

    A value that is not finite is no improvement. Checkpoints hold the best value, its step and the
    number of evaluations since, so a resumed run stops where an uninterrupted one stops. A run
    whose patience is already exhausted stops before its first step, unless `patience` was raised.

    Args:
      metric: Name of the metric as logged, such as "val/accuracy".
      patience: Number of evaluations (logs of the metric), at least 1.
      min_delta: Difference that an improvement must exceed, at least 0.
      mode: "max" if higher values are better, "min" if lower ones are. None: "min" for losses
        (`losses/total`, `val/losses/kl`), and what the metric says of itself for a metric that an
        Evaluate hook computes: Keras's own metrics know it.

    Raises:
      ValueError: An argument is out of its range. Before the first step: no `mode` was given, and
        nobody knows the direction of the metric.
    """

    def __init__(
        self,
        metric: str,
        *,
        patience: int,
        min_delta: float = 0.0,
        mode: Mode | None = None,
    ):
        if patience < 1:
            raise ValueError(f"EarlyStopping(patience={patience}): patience must be at least 1.")
        self.patience = patience
        self._metric = MonitoredMetric("EarlyStopping", metric, mode, min_delta)

    def before_train(self) -> None:
        """Finds the mode, and stops a run whose patience is already exhausted."""
        self._metric.start(self.trainer.hooks)
        self.state = self._metric.restored(self.state, self.trainer.logger)
        self._stop_if_exhausted()

    def on_log(self, step: int, scalars: Mapping[str, float], summaries: Sequence[Summary]) -> None:
        """Counts evaluations without an improvement, and stops training after too many."""
        value = self._metric.value(step, scalars)
        if value is None:
            return
        if self._metric.is_improvement(value, self.state.get("best")):
            self.state = {**self._metric.identity(), "best": value, "step": step, "count": 0}
        else:
            self.state |= {**self._metric.identity(), "count": self.state.get("count", 0) + 1}
        self._stop_if_exhausted()

    def after_train(self) -> None:
        """Warns if the metric was never logged."""
        self._metric.warn_if_never_logged(self.trainer.error)

    def _stop_if_exhausted(self) -> None:
        count = self.state.get("count", 0)
        if count < self.patience:
            return
        metric, best = self._metric, self.state.get("best")
        verb = "risen above" if metric.mode == "max" else "fallen below"
        than = f"{best:.6g} (step {self.state['step']})" if best is not None else "any number"
        by = f" by more than {metric.min_delta:g}" if metric.min_delta else ""
        span = f"{count} evaluations" if count > 1 else "evaluation"
        self.trainer.stop(f"{metric.name} has not {verb} {than}{by} in the last {span}")
