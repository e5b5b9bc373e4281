"""Watches gradients, updates and weights, and how the losses share the update.

    Watch(Every(steps=100), ["encoder/*", "*/bias"], shared="encoder/*")

The numbers are logged under `watch/`. At the end, the last ones are in `workdir/watch.txt` and
`watch.png`.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from tfloss.common.replacement import replace_file
from tfloss.hooks.base import Hook
from tfloss.hooks.every import Every, OnSteps, check_trigger
from tfloss.hooks.watch_table import WatchTable, histograms
from tfloss.hooks.write_errors import WriteErrors
from tfloss.optimizers.variable_globs import matching
from tfloss.step.watched import Watched, WatchRequest

_TEXT, _PICTURE = "watch.txt", "watch.png"


class Watch(Hook, own=True):
    """Logs norms and histograms of variables, and compares the gradients of the losses. Host.

    Per variable: the norms of the gradient, of the update and of the weight before it, and the
    ratio of update and weight. Per loss: the norm of its gradient on the variables that several
    losses reach, the cosines between these gradients, and its share of the update. All gradients
    are those of the global batch, so the numbers don't depend on replicas and micro-batches, and
    those of losses have the loss weights. The gradient of a variable is what the optimizer gets:
    clipped, and changed by a balancer. The share of a loss is the part of the descent that is its
    own: `-(its gradient) . update`, divided by the sum over all losses. It is negative if the
    update makes the loss larger, to first order.

    A due step is traced apart, once, before the first step, and runs alone. All other steps are as
    fast as without the hook. The due step has one more backward pass for each loss, unless `shared`
    is None, and runs as a graph with `jit="loop"`, so that its results are rounded in another
    order. The numbers of a step with several `minimize` calls for the same variables are those of
    the last call.

    Curves are `watch/gradient_norm/<path>`, `update_norm`, `weight_norm`, `update_ratio`,
    `watch/loss_gradient_norm/<loss>`, `watch/cosine/<loss>,<loss>` and `watch/share/<loss>`.

    Args:
      every: When to watch. Seconds are refused: the step must be known before it runs.
      variables: Globs of the trained variables (see `tfloss.optimizers.variable_globs`).
      shared: Globs of the variables on which the losses are compared. None: they are not.
      histograms: Whether to log histograms of gradient, update and weight, too.

    Raises:
      ValueError: `every` is no trigger, or one of seconds. Before the first step: a glob matches
        no trained variable, or there are two Watch hooks.
    """

    def __init__(
        self,
        every: Every | OnSteps,
        variables: str | Sequence[str] = "*",
        *,
        shared: str | Sequence[str] | None = "*",
        histograms: bool = True,
    ):
        check_trigger(every, "Watch")
        if isinstance(every, Every) and every.kind == "seconds":
            raise ValueError("Watch needs its steps in advance. Use Every(steps=...) or epochs.")
        self.every = every
        self.request = WatchRequest(_globs(variables), _globs(shared or ()), histograms)
        self.table: WatchTable | None = None
        self._errors = WriteErrors(self, "The table of Watch", "It is in the curves, too.")

    def before_train(self) -> None:
        """Checks the globs."""
        self.table = None
        if sum(isinstance(hook, Watch) for hook in self.trainer.hooks) > 1:
            raise ValueError("There are two Watch hooks. Give one of them all of the globs.")
        model = self.trainer.model
        for glob in [*self.request.variables, *self.request.shared]:
            matching(glob, model.trainable_variables, model, f"Watch: {glob!r}", "trained variable")

    def next_step(self, step: int) -> int | None:
        """Returns the first step after `step` that is watched, or None if there is none.

        Args:
          step: The number of completed updates.
        """
        return None if self.every is None else self.every.next_step(step)

    def receive(self, watched: Sequence[Watched]) -> None:
        """Takes what a step has watched. The trainer calls it before `after_step`.

        Args:
          watched: What each `minimize` call of the step has watched.
        """
        self.table = WatchTable(self.trainer.step, watched)

    def after_step(self, step: int) -> None:
        """Logs the numbers."""
        if self.table is not None and self.table.step == step:
            found = histograms(self.table.watched) if self.request.histograms else []
            self.trainer.log(step, self.table.scalars(), found)

    def after_train(self) -> None:
        """Writes the table and the picture of the last watched step into the workdir."""
        workdir = self.trainer.workdir
        if self.table is not None and workdir is not None and self.trainer.agreement.chief:
            table = self.table
            self._errors.survive(lambda: self._write(workdir, table))

    def _write(self, workdir: Path, table: WatchTable) -> None:
        replace_file(workdir / _TEXT, str(table) + "\n")
        try:
            from tfloss.hooks.watch_picture import draw
        except ImportError:
            self.trainer.logger.info(
                f"{workdir / _PICTURE} needs matplotlib: pip install 'tfloss[plot]'."
            )
        else:
            replace_file(workdir / _PICTURE, draw(table))


def watch_of(hooks: Iterable[Hook]) -> Watch | None:
    """Returns the Watch hook among the hooks of a run, or None.

    Args:
      hooks: The hooks.
    """
    return next((hook for hook in hooks if isinstance(hook, Watch)), None)


def _globs(globs: str | Sequence[str]) -> tuple[str, ...]:
    return (globs,) if isinstance(globs, str) else tuple(globs)
