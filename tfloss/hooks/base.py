"""What a hook is: something that happens beside training, at exactly the steps it asks for.

    class Greet(Hook):
        every = Every(steps=100)
        def after_step(self, step): print(step, self.trainer.model.name)

All of a hook runs on the host, between calls of the training step. What it touches on the
device there, training waits for.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tfloss.hooks.every import Every, OnSteps
from tfloss.hooks.trainer_protocol import TrainerProtocol
from tfloss.summary import Summary


class Hook:
    """Base of all hooks; every method is optional, and `super()` need not be called.

    Hooks are called in the order of their list, in each of the methods. So what produces
    (Evaluate) comes before what keeps (SaveCheckpoint, whose checkpoint holds the state of
    all hooks), and writers come last.

    Attributes:
      every: when `after_step` is due; None: never.
      state: what must survive in a checkpoint, as JSON; saved and restored by the trainer,
        before `before_train`. Keep all that `on_log` and `after_step` remember in it.
      trainer: set by the trainer before `before_train`. A hook may use its model, optimizer,
        strategy, workdir, step, run, error, log, stop, save_checkpoint, checkpoints,
        evaluate, hooks, clock, stopwatch and agreement.
      time_bucket: what its time is counted as, "hooks" or "checkpoint".
      async_logs: whether `on_log` may be called up to a second after its step, those of several
        steps together: it writes or shows, and stops nothing. Where that is so of all hooks that
        have an `on_log`, a loop of small steps that is compiled whole isn't cut at each log.
      chief_only: of several workers, only the first calls it: a writer. Other hooks are called
        on all workers, and must do there together what all must do: evaluate, save.
    """

    every: Every | OnSteps | None = None
    time_bucket: str = "hooks"
    async_logs: bool = False
    chief_only: bool = False
    state: dict[str, Any]
    trainer: TrainerProtocol

    def __new__(cls, *args: Any, **kwargs: Any):
        # Here, so that a subclass whose __init__ forgets super() doesn't share a state.
        hook = super().__new__(cls)
        hook.state = {}
        return hook

    def before_train(self) -> None:
        """Host, once a `train`: after a checkpoint was restored, before the first step."""

    def after_step(self, step: int) -> None:
        """Host, at exactly the due steps: `step` updates are done."""

    def on_log(self, step: int, scalars: Mapping[str, float], summaries: Sequence[Summary]) -> None:
        """Host, whenever somebody logs: the values of the `step`-th update, by name.

        With `Trainer(log_every_step=True)`, and with `async_logs`, several steps come one after
        the other, and the summaries with the last of them.
        """

    def before_save(self, step: int) -> None:
        """Host, before a checkpoint is written: what was logged so far is to be on the disk."""

    def after_train(self) -> None:
        """Host, once a `train`, also after an error: `trainer.error` is that, or None."""
