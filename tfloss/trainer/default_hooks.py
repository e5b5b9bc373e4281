"""The hooks that a trainer adds by itself. Host code."""

from collections.abc import Sequence

from tfloss.hooks.base import Hook
from tfloss.hooks.every import Every, check_trigger
from tfloss.hooks.metrics_file import MetricsFile
from tfloss.hooks.nan_guard import NaNGuard
from tfloss.hooks.progress import Progress
from tfloss.hooks.save_checkpoint import SaveCheckpoint
from tfloss.hooks.tensorboard import TensorBoard
from tfloss.hooks.watchdog import Watchdog


class DefaultHooks:
    """`NaNGuard` and `Progress`; with a workdir also checkpoints and writers.

    On several workers, a `Watchdog` is added.

    Args:
      enabled: Whether there are any default hooks.
      workdir: Whether there is a workdir to write to.
      workers: The number of workers.
    """

    def __init__(self, enabled: bool, workdir: bool, workers: int = 1):
        self._hooks: list[Hook] = [NaNGuard(), Progress()] if enabled else []
        if enabled and workdir:
            self._hooks[1:1] = [SaveCheckpoint(Every(seconds=600)), TensorBoard(), MetricsFile()]
        if enabled and workers > 1:
            self._hooks.append(Watchdog())

    def after(self, given: Sequence[Hook]) -> list[Hook]:
        """Returns the given hooks, then the default ones of other classes.

        Hooks that produce values stand before those that write or save them.

        Args:
          given: The user's hooks.

        Raises:
          ValueError, TypeError: The trigger of a hook is not valid.
        """
        for hook in given:
            check_trigger(hook.every, type(hook).__name__)
        classes = {type(hook) for hook in given}
        return [*given, *(hook for hook in self._hooks if type(hook) not in classes)]
