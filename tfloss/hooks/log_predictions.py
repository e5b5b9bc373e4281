"""Writes images of the model's predictions during training.

    LogPredictions("val/found", test_set, lambda batch, found: draw(batch["image"], found["boxes"]))

`tfloss.summary` records images from inside the training forward, which makes no predictions.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfloss.data.adapted import adapted
from tfloss.data.distributed import Data, as_dataset
from tfloss.forward.recorded_summaries import Summary, draw_images
from tfloss.hooks.base import Hook
from tfloss.hooks.every import Every, OnSteps, check_trigger


class LogPredictions(Hook, own=True):
    """Draws the predictions for the first batch of a data set. Host.

    It runs when due, and once more at the end of training if the last images are older. If
    drawing fails, a warning reports it once, and training continues without the images.

    Args:
      name: Tag of the images.
      data: Batches, in any form that `Trainer.evaluate` accepts. Only the first batch is used.
      draw: Function `(batch, predictions) -> images` on the host. It gets nests of NumPy arrays
        and returns images [n, height, width, channels], uint8 or float in [0, 1].
      every: When to draw. None: only at the end.
      ema: Whether to predict with the moving averages of the weights (`Trainer(ema=...)`).
      batch_size: The examples in a batch, for arrays and tables.

    Raises:
      DataError: `batch_size` is missing, or the data can't be used.
      ValueError: `every` is not a trigger.
    """

    def __init__(
        self,
        name: str,
        data: Data,
        draw: Callable[[Any, Any], Any],
        *,
        every: Every | OnSteps | None = None,
        ema: bool = False,
        batch_size: int | None = None,
    ):
        check_trigger(every, "LogPredictions")
        self.name = name
        self.data = adapted(data, batch_size)
        self.draw = draw
        self.every = every
        self.ema = ema
        self._first_batch: Any  # a data set, set by before_train
        self._last = _LastBatch()

    def before_train(self) -> None:
        """Finds the first batch.

        Raises:
          DataError: `data` is not in a form that `Trainer.evaluate` accepts.
        """
        self._first_batch = as_dataset(self.data, self.trainer.strategy).take(1)

    def after_step(self, step: int) -> None:
        """Predicts, draws and logs the images."""
        self.state["step"] = step
        self.trainer.evaluate(self._first_batch, {"last": self._last}, ema=self.ema)
        images = draw_images(self.name, self.draw, self._last.batch, self._last.predictions)
        if images is not None:
            self.trainer.log(step, {}, [Summary(self.name, "image", images)])

    def dry_run(self, directory: Path) -> Sequence[str]:
        """Predicts and draws the first batch."""
        self.before_train()
        self.trainer.evaluate(self._first_batch, {"last": self._last}, ema=self.ema)
        images = np.asarray(self.draw(self._last.batch, self._last.predictions))
        return [f"Predictions were drawn as {self.name!r}: images of shape {images.shape}"]

    def after_train(self) -> None:
        """Draws once more after a run without an error, unless the last step was drawn."""
        if self.trainer.error is None and self.state.get("step") != self.trainer.step:
            self.after_step(self.trainer.step)


class _LastBatch:
    """A metric that keeps the last batch and its predictions. Host."""

    batch: Any = None
    predictions: Any = None

    def reset(self) -> None:
        self.batch = self.predictions = None

    def update(self, batch: Any, predictions: Any) -> None:
        self.batch, self.predictions = batch, predictions

    def result(self) -> dict[str, float]:
        return {}
