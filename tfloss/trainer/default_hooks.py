"""The hooks that a trainer has without being asked. Host code."""

from collections.abc import Sequence

from tfloss.hooks.base import Hook
from tfloss.hooks.every import Every, check_trigger
from tfloss.hooks.metrics_file import MetricsFile
from tfloss.hooks.nan_guard import NaNGuard
from tfloss.hooks.progress import Progress
from tfloss.hooks.save_checkpoint import SaveCheckpoint
from tfloss.hooks.tensorboard import TensorBoard


class DefaultHooks:
    """`NaNGuard` and `Progress`; with a workdir also checkpoints and writers.

    Args:
      wanted: whether there are any.
      workdir: whether there is a place to write.
    """

    def __init__(self, wanted: bool, workdir: bool):
        self._hooks: list[Hook] = [NaNGuard(), Progress()] if wanted else []
        if wanted and workdir:
            self._hooks[1:1] = [SaveCheckpoint(Every(seconds=600)), TensorBoard(), MetricsFile()]

    def after(self, given: Sequence[Hook]) -> list[Hook]:
        """The given hooks, then those of other classes: what produces is before what keeps it.

        Raises ValueError or TypeError for a hook whose trigger is none.
        """
        for hook in given:
            check_trigger(hook.every, type(hook).__name__)
        classes = {type(hook) for hook in given}
        return [*given, *(hook for hook in self._hooks if type(hook) not in classes)]
