"""Stops a training that no longer gets better.

    Evaluate(test_set, {"accuracy": accuracy}, every=Every(epochs=1)),
    EarlyStopping("val/accuracy", patience=5)

Patience is counted in evaluations, that is, in logs of the metric.
"""

from tfloss.hooks._watch import Watch
from tfloss.hooks.base import Hook


class EarlyStopping(Hook):
    """Stops after `patience` evaluations in a row without an improvement. Host.

    A value that is not finite is no improvement. The state is the best value, its step and
    the count, so a resumed run stops where an undisturbed one would; one that was already
    out of patience stops before its first step, unless `patience` was raised.

    Args:
      metric: as it is logged, "val/accuracy".
      patience: evaluations (logs of the metric), at least 1.
      min_delta: an improvement must be larger than this.
      mode: "max" if more is better, "min" if less is. By default "min" for what is logged
        under `losses/` (`losses/total`, `val/losses/kl`), else "max".
    """

    def __init__(
        self, metric: str, *, patience: int, min_delta: float = 0.0, mode: str | None = None
    ):
        if patience < 1:
            raise ValueError(f"EarlyStopping(patience={patience}): patience must be at least 1.")
        self.patience = patience
        self._watch = Watch("EarlyStopping", metric, mode, min_delta)

    def before_train(self) -> None:
        self._watch.start()
        self._stop_if_exhausted()

    def on_log(self, step, scalars, summaries) -> None:
        value = self._watch.value(step, scalars)
        if value is None:
            return
        if self._watch.better(value, self.state.get("best")):
            self.state = {"best": value, "step": step, "count": 0}
        else:
            self.state["count"] = self.state.get("count", 0) + 1
        self._stop_if_exhausted()

    def after_train(self) -> None:
        self._watch.finish(self.trainer.error)

    def _stop_if_exhausted(self) -> None:
        count = self.state.get("count", 0)
        if count < self.patience:
            return
        verb = "risen above" if self._watch.mode == "max" else "fallen below"
        best = self.state.get("best")
        than = f"{best:.6g} (step {self.state['step']})" if best is not None else "any number"
        by = f" by more than {self._watch.min_delta:g}" if self._watch.min_delta else ""
        span = f"{count} evaluations" if count > 1 else "evaluation"
        self.trainer.stop(f"{self._watch.metric} has not {verb} {than}{by} in the last {span}")
