"""Pictures of what the model predicts, beside training.

    LogPredictions("val/found", test_set, lambda batch, found: draw(batch["image"], found["boxes"]))

What the training forward sees, `tfloss.summary` shows from inside the model; it makes no
predictions.
"""

from collections.abc import Callable
from typing import Any

from tfloss.hooks.base import Hook
from tfloss.hooks.every import Every, OnSteps, check_trigger
from tfloss.summary import Summary, drawn


class LogPredictions(Hook):
    """Predicts the first batch of a data set when due, and once more at the end. Host.

    A drawing that fails is reported in a warning, once; training goes on without it.

    Args:
      name: the tag of the pictures.
      dataset: what `trainer.evaluate` takes; its first batch is used.
      draw: `(batch, predictions) -> images`, from nests of NumPy arrays to [n, height, width,
        channels], uint8 or float in [0, 1].
      every: when; None: only at the end.
      ema: of the moving averages of the weights (`Trainer(ema=...)`).
    """

    def __init__(
        self,
        name: str,
        dataset: Any,
        draw: Callable[[Any, Any], Any],
        *,
        every: Every | OnSteps | None = None,
        ema: bool = False,
    ):
        check_trigger(every, "LogPredictions")
        self.name = name
        self.draw = draw
        self.every = every
        self.ema = ema
        self._dataset = dataset.take(1)
        self._seen = _Seen()

    def after_step(self, step: int) -> None:
        self.state["step"] = step
        self.trainer.evaluate(self._dataset, {"seen": self._seen}, ema=self.ema)
        images = drawn(self.name, self.draw, *self._seen.last)
        if images is not None:
            self.trainer.log(step, {}, [Summary(self.name, "image", images)])

    def after_train(self) -> None:
        if self.trainer.error is None and self.state.get("step") != self.trainer.step:
            self.after_step(self.trainer.step)


class _Seen:
    """A metric that keeps what it is given."""

    last: tuple[Any, Any] = (None, None)

    def update(self, batch: Any, predictions: Any) -> None:
        self.last = batch, predictions

    def result(self) -> dict[str, float]:
        return {}
