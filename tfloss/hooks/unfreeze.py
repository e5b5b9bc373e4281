"""Keeps a part of the model frozen until a step, and trains it from then on.

    Unfreeze(2_000, "backbone/*")

It is for fine-tuning: first the new head, then all of the model.
"""

from typing import Any, cast

from tfloss.hooks.base import Hook
from tfloss.hooks.every import OnSteps


class Unfreeze(Hook, own=True):
    """Freezes variables in the first `at` steps of training. Host.

    The step counts from the beginning of training, so a resumed run unfreezes them at the same
    step. Until then, the variables get no gradient, no weight decay and no slots' updates. Layers
    all of whose variables match have `trainable=False`: BatchNormalization is in inference mode.
    Layers that the script has frozen stay frozen. The step is traced again after `at` steps.
    Several hooks unfreeze one part after another; what several match is frozen until the last of
    them. When `train` ends, all trainable flags are the script's again.

    Args:
      at: Number of updates with frozen variables, at least 1.
      glob: Glob of the variables' paths, with or without the name of the model: "backbone/*".

    Raises:
      ValueError: `at` is not an integer of at least 1, or `glob` is no text. Before the first step:
        the glob matches no variable, none that could be trained, or all of them.
    """

    def __init__(self, at: int, glob: str):
        if not isinstance(cast(Any, glob), str):
            raise ValueError(
                f"Unfreeze({at!r}, {glob!r}): the glob must be a text such as 'backbone/*', which "
                "is compared with the paths of variables. For several globs give several hooks."
            )
        self.every = OnSteps(at)
        self.at, self.glob = at, glob

    def before_train(self) -> None:
        """Freezes the variables, unless the run is past the step."""
        owner = f"Unfreeze({self.at}, {self.glob!r})"
        self.trainer.train_step.freezing.freeze(self.glob, owner)
        if self.trainer.step >= self.at:
            self.trainer.train_step.freezing.thaw(self.glob)

    def after_step(self, step: int) -> None:
        """Unfreezes the variables."""
        self.trainer.train_step.freezing.thaw(self.glob)
        self.trainer.logger.info(f"step {step}: {self.glob} is trained from now on")

    def after_train(self) -> None:
        """Gives the trainable flags back to the script."""
        self.trainer.train_step.freezing.thaw(self.glob)
