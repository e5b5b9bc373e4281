"""Which checkpoint a trainer restores: the newest valid one, or a selected one. Host code.

The first worker reads the files and decides. The workers agree on the result before anybody
restores, which takes all of them.
"""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from tfloss.checkpoint import CheckpointDirectory
from tfloss.checkpoint.manifest import again_if_deleted
from tfloss.checkpoint.selection import check_selection, select
from tfloss.common.logger import ChiefLogger
from tfloss.distribute.agreement import Agreement
from tfloss.errors import CheckpointDeletedError, CheckpointError
from tfloss.hooks import Hook
from tfloss.hooks.monitored_metric import known_mode

_NONE, _NONE_VALID, _DELETED = -1, -2, -3  # in place of a step
_NETWORK_SECONDS = 10.0  # that a network file system may take to show new files to other hosts


def newest_checkpoint(
    directory: CheckpointDirectory | None, agreement: Agreement, logger: ChiefLogger
) -> Path | None:
    """Finds the checkpoint to resume from: the first worker's newest valid one.

    Args:
      directory: The directory of the checkpoints, or None.
      agreement: What the workers decide together.
      logger: Receives a line for each corrupt checkpoint.

    Returns:
      The path of the checkpoint, or None if there is none.

    Raises:
      WorkerError: A worker doesn't see the checkpoint. It is raised on all workers.
      CheckpointError: There are checkpoints, and none is valid; or they can't be listed.
    """
    if directory is None:
        return None

    def newest_step() -> int:
        steps = directory.steps() if agreement.chief else []
        newest = directory.first_valid(steps[::-1], logger)
        return newest if newest is not None else _NONE_VALID if steps else _NONE

    found = agreement.run_on_all("list the checkpoints", lambda: again_if_deleted(newest_step))
    step = int(agreement.agree([], [found], "the choice of a checkpoint")[1][0])
    if step == _NONE_VALID:
        raise CheckpointError(
            f"None of the checkpoints in {directory.path} is valid; the lines above say why. To "
            "start from the beginning, move them away."
        )
    return None if step == _NONE else _seen_by_all(directory, step, agreement)


def selected_checkpoint(
    directory: CheckpointDirectory | None,
    agreement: Agreement,
    logger: ChiefLogger,
    *,
    step: int | None = None,
    best: str | None = None,
    hooks: Sequence[Hook] = (),
) -> Path:
    """Finds the checkpoint of a step, the best one by a metric, or the newest valid one.

    Args:
      directory: The directory of the checkpoints, or None.
      agreement: What the workers decide together.
      logger: Receives a line for each corrupt checkpoint that is passed over.
      step: The step of the checkpoint, or None.
      best: The name of a metric, as logged, or None.
      hooks: Hooks that may know the direction of the metric better than the checkpoints.

    Returns:
      The path of the checkpoint.

    Raises:
      ValueError: Both `step` and `best` are given.
      CheckpointError: There is no such checkpoint. The message lists what there is.
      CheckpointDeletedError: There is no checkpoint of `step`, or no more, on all workers.
      WorkerError: A worker doesn't see the checkpoint, or the first one found none.
    """
    check_selection(step, best)
    if directory is None:
        raise CheckpointError("The Trainer has no workdir, so it has no checkpoint to restore.")
    mode = None if best is None else known_mode(best, hooks)

    deleted: CheckpointDeletedError | None = None

    def chosen() -> int:
        nonlocal deleted
        if not agreement.chief:
            return _NONE
        try:
            return select(directory, logger, step=step, best=best, mode=mode)
        except CheckpointDeletedError as error:
            deleted = error
            return _DELETED

    own = agreement.run_on_all("find a checkpoint", chosen)
    found = int(agreement.agree([], [own], "the choice of a checkpoint")[1][0])
    if found == _DELETED:  # not an error of one worker: all of them may go on with another one
        raise deleted or CheckpointDeletedError(f"The first worker found no checkpoint of {step}.")
    return _seen_by_all(directory, found, agreement)


def _seen_by_all(directory: CheckpointDirectory, step: int, agreement: Agreement) -> Path:
    """Waits until all workers see a checkpoint, and returns its path.

    Raises:
      CheckpointDeletedError: A trainer beside these workers has deleted it; on all workers.
      WorkerError: A worker doesn't see it.
    """
    if agreement.workers == 1:
        return directory.at(step)
    until = time.monotonic() + _NETWORK_SECONDS
    while not (directory.has(step) or _has_later(directory, step)) and time.monotonic() < until:
        time.sleep(0.1)
    place = "the search for the checkpoint"
    if agreement.agree([not directory.has(step)], [], place)[0][0]:
        # The first worker has seen it before.
        if agreement.agree([agreement.chief and not directory.has(step)], [], place)[0][0]:
            raise CheckpointDeletedError(
                f"The checkpoint of step {step} in {directory.path} was deleted meanwhile."
            )
        seen = "found" if directory.has(step) else f"missing in {directory.path}"
        agreement.require_equal(
            {f"the checkpoint of step {step}": seen},
            "The first worker resumes from it. All workers must see the same workdir, at the same "
            "path: put it on a file system that they share.",
        )
    return directory.at(step)


def _has_later(directory: CheckpointDirectory, step: int) -> bool:
    """Whether there are checkpoints of later steps, so that one that is missing won't come."""
    with contextlib.suppress(CheckpointError):
        return any(later > step for later in directory.steps())
    return False
