"""Evaluates beside training, so that validation curves lie next to the training ones.

    Evaluate(test_set, {"accuracy": accuracy}, every=Every(epochs=1), losses=True)

Curves: val/accuracy, val/losses/total and val/losses/<name>.
"""

from collections.abc import Mapping
from typing import Any

from tfloss.hooks.base import Hook
from tfloss.hooks.every import Every, OnSteps, check_trigger


class Evaluate(Hook):
    """Runs `trainer.evaluate` when due, and once more at the end if the last one is older.

    Host; training waits for it. Not run at the end of a run that failed.

    Args:
      dataset: what `trainer.evaluate` takes; finite.
      metrics: name to metric, as for `trainer.evaluate`.
      every: when; None: only at the end.
      name: prefix of what is logged. Two Evaluates need two names.
      losses: also the losses of the training forward, as `<name>/losses/<loss>`.
      ema: of the moving averages of the weights (`Trainer(ema=...)`).
    """

    def __init__(
        self,
        dataset: Any,
        metrics: Mapping[str, Any],
        *,
        every: Every | OnSteps | None = None,
        name: str = "val",
        losses: bool = False,
        ema: bool = False,
    ):
        check_trigger(every, "Evaluate")
        if not name or name.endswith("/"):
            raise ValueError(f"Evaluate(name={name!r}): name must be like 'val', without a '/'.")
        self.dataset = dataset
        self.metrics = metrics
        self.every = every
        self.name = name
        self.losses = losses
        self.ema = ema

    def before_train(self) -> None:
        for other in self.trainer.hooks:
            if isinstance(other, Evaluate) and other is not self and other.name == self.name:
                raise ValueError(
                    f"Two Evaluate hooks log under the name {self.name!r}, so their values would "
                    "be mixed. Give one of them another name: Evaluate(..., name='test')."
                )

    def after_step(self, step: int) -> None:
        # Before the log, so that a checkpoint saved by a hook in on_log has it.
        self.state["step"] = step
        results = self.trainer.evaluate(
            self.dataset, self.metrics, losses=self.losses, ema=self.ema
        )
        self.trainer.log(step, {f"{self.name}/{key}": value for key, value in results.items()})

    def after_train(self) -> None:
        if self.trainer.error is None and self.state.get("step") != self.trainer.step:
            self.after_step(self.trainer.step)
