"""The beginning and the end of all hooks of one run. Host code."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tfloss.errors import Aborted
from tfloss.hooks.base import Hook
from tfloss.hooks.every import started_copy

if TYPE_CHECKING:
    from tfloss.trainer.trainer import Trainer


@contextlib.contextmanager
def running(trainer: "Trainer") -> Iterator[None]:
    """Starts the trainer's hooks; inside, its steps are run; then lets every one of them end.

    Each that was started ends, whatever the others do; `trainer.error` says by what the run ended.
    At last what is written in the background is waited for. Raises the first error.
    """
    started: list[Hook] = []
    try:
        for hook in trainer.hooks:
            if hook.every is not None:
                hook.every = started_copy(hook.every, trainer.run)
            if trainer.runs(hook):
                started.append(hook)
                hook.before_train()
        yield
    except BaseException as error:
        trainer.error = error
        raise
    finally:
        failure: BaseException | None = None
        # Checkpoints last: what the others found at the end is in them.
        for hook in sorted(started, key=lambda hook: hook.time_bucket == "checkpoint"):
            try:
                with trainer.stopwatch.during(hook.time_bucket):
                    hook.after_train()
            except KeyboardInterrupt:
                trainer.error = failure = Aborted()  # so that those after it don't begin to save
            except BaseException as error:  # noqa: BLE001 - raised below, after the others
                failure = failure or error
        try:
            if trainer.writer is not None:
                trainer.writer.wait()
        except Exception as error:  # noqa: BLE001 - the same
            failure = failure or error
        if failure is not None and (trainer.error is None or isinstance(failure, Aborted)):
            trainer.error = failure
            raise failure
