"""The data of a run: an iterator over them, and the position that a checkpoint saves. Host code.

What goes into a feed and comes out of it, and when:

| caller | method | when |
| --- | --- | --- |
| `Trainer.train` | `reader`, `taken`, `warn`, `resume`, `catch_up` | before the first step |
| `ModeRunner` | `input.source` | before each call of the engine, for the mode that runs |
| `BackgroundCompiler` | `reader`, `input.source` | before it compiles |
| `ModeRunner` | `snapshot`, `input.failed` | around the first call of a mode that may not compile |
| `Loop` | `input.failed` | after an error of TensorFlow |
| `Loop` | `trained` | after each call, with the number of steps that it trained |
| `Loop` | `compare_workers`, `keep` | after each call |
| `Loop` | `after_end`, `after_error` | the data ended, or raised an error |
| `Trainer.save_checkpoint` | `state` | between two calls |

`Trainer` and `Loop` hold a feed; `ModeRunner` gets it for one call at a time.
"""

import dataclasses
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from tfloss.common.logger import ChiefLogger, logger
from tfloss.data.batch_layout import ROWS_ARE_EXAMPLES, BatchLayout
from tfloss.data.batch_reader import BatchReader
from tfloss.data.distributed import Data
from tfloss.data.engine_input import EngineInput
from tfloss.data.identity import differences
from tfloss.data.nondeterminism import snapshots
from tfloss.data.position import read_past
from tfloss.data.resume_strategies import ResumeStrategy, resume_strategy
from tfloss.data.stacked_batches import BatchStacker
from tfloss.distribute.agreement import Agreement
from tfloss.errors import DataError

# An iterator that is read ahead is past the position that a checkpoint needs. So its state is
# recorded at most every 10 s, and recording takes at most 1 % of the time.
_KEEP_SECONDS = 10.0
_KEEP_FRACTION = 0.01


@dataclasses.dataclass(frozen=True)
class _Behind:
    """What a resumed run has to read before it is at its position.

    Attributes:
      passes: Complete passes over the data.
      batches: Batches after them.
      first: The checksum of the first batch when training began, or None.
    """

    passes: int
    batches: int
    first: int | None


class Feed:
    """One data set under one strategy, and the position in it.

    Args:
      data: The data, as `BatchReader` takes them.
      strategy: The strategy that splits each batch over its replicas.
      batches_per_step: Batches that one step takes.
      layout: Which tensors of a batch hold examples.
      log_every: Steps between logs. Blocks of batches start at multiples of it if they can.
      current_step: A function that returns the number of completed updates.
      keeps: Whether the position will be saved.
      clock: A function that returns the time in seconds.

    Attributes:
      reader: The description of the data.
      batches: Batches that were trained on since the beginning of the data.
      taken: Batches that the current call of `train` has trained on, before a resume included. A
        call that has taken none may start the data again.
      passes: Number of restarts of the data. A shuffle may differ in each pass.
      resume_strategy: How a resumed run finds the position again.
      input: What the engine takes its batches from.

    Raises:
      DataError: `data` is not a data set, is known to be empty, or its batches can't be divided
        over the replicas.
    """

    def __init__(
        self,
        data: Data,
        strategy: tf.distribute.Strategy,
        batches_per_step: int = 1,
        *,
        layout: BatchLayout = ROWS_ARE_EXAMPLES,
        log_every: int = 1,
        current_step: Callable[[], int] | None = None,
        keeps: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.reader = BatchReader(data, strategy, layout)
        self.resume_strategy: ResumeStrategy = resume_strategy(self.reader)
        self._batches_per_step, self._log_every = batches_per_step, log_every
        self._current_step = current_step or (lambda: self.batches // batches_per_step)
        self._keeps, self._clock, self._keep_at = keeps, clock, 0.0
        self._warned = False
        self._blocks: dict[str, Any] | None = None  # of the resumed run's stacker
        self._behind: _Behind | None = None
        self.taken = 0
        self.input = EngineInput(self._new_stacker)
        self.passes = -1
        self.restart()

    def restart(self, batches: int = 0) -> None:
        """Goes back to the first batch; in a `Source`, to batch number `batches`."""
        self.passes += 1
        self.batches, self._blocks, self._behind = batches, None, None
        self.input.open(self.resume_strategy.open(batches))

    def warn(self, deterministic: bool = False) -> None:
        """Warns once of parts of the pipeline that may give other batches after a resume.

        It also says if a resumed run reads the data again because of a snapshot.

        Args:
          deterministic: Whether op determinism is on; then it is an error.

        Raises:
          DataError: A resumed run would see other batches, and `deterministic` is true.
        """
        if self._warned:
            return
        self._warned = True
        if self._keeps and snapshots(self.reader.dataset):
            logger.info(
                "the data use snapshot(). TensorFlow can't save its position while it is written, "
                "so a resumed run reads the data again from the beginning, up to its position."
            )
        if bad := self.resume_strategy.irreproducible(op_determinism=deterministic):
            text = (
                "Read again, the data set may give other batches or another order, so a resumed "
                "run would not match an uninterrupted one exactly:"
                + "".join(f"\n  {one}" for one in bad)
            )
            if deterministic:
                raise DataError(text)
            warnings.warn(text, stacklevel=2)

    def trained(self, steps: int) -> None:
        """Records that `steps` more steps were trained."""
        batches = steps * self._batches_per_step
        self.batches += batches
        self.taken += batches

    def keep(self) -> None:
        """Records the iterator's state now and then, so that a resumed run reads little again."""
        if not (self._keeps and self.resume_strategy.records):
            return
        if not self.input.reads_ahead:
            if self.resume_strategy.needs_early_state:
                self._record()
            return
        began = self._clock()
        if began < self._keep_at:
            return
        self.resume_strategy.saved(self.batches)  # forgets states that are older than needed
        self._record()
        now = self._clock()
        self._keep_at = now + max(_KEEP_SECONDS, (now - began) / _KEEP_FRACTION)

    def snapshot(self) -> Callable[[], None] | None:
        """Returns a function that brings the data back to where they are now, or None."""
        back = self.resume_strategy.snapshot(self.input.iterator, self.batches)
        if back is None:
            return None

        def restore() -> None:
            iterator = back()
            if iterator is not self.input.iterator:
                self.input.open(iterator)

        return restore

    def after_error(self) -> None:
        """Moves behind the step whose batches raised an error; the rest of that step is lost."""
        self.input.drop_step()
        if self.reader.seekable:
            # The iterator may have lost any part of a batch.
            self.restart(self.batches + self._batches_per_step)
        elif self._keeps and self.resume_strategy.records:
            # Earlier states are useless: reading on from them meets the error again.
            self.resume_strategy.restored(self.batches, None)
            self._record()

    def state(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        """Returns the position, for a checkpoint: JSON values, and files by name."""
        if self.resume_strategy.records:
            self._record()
        files, skip = self.resume_strategy.saved(self.batches)
        first = self.resume_strategy.first
        position = {
            "strategy": self.resume_strategy.name,
            "batches": self.batches,
            "taken": self.taken,
            "skip": skip,
            "passes": self.passes,
            "identity": self.reader.identity(),
            "first": None if first is None else first.checksum,
            "blocks": None if self.input.stacker is None else self.input.stacker.size.state(),
        }
        return position, files

    def resume(
        self,
        state: Mapping[str, Any],
        files: Mapping[str, bytes],
        logger: ChiefLogger,
        *,
        midway: bool = False,
        read: bool = True,
    ) -> None:
        """Goes to a saved position of the same data.

        If the data set differs from the checkpoint's, it starts from the beginning; a message lists
        the differences.

        Args:
          state: The position as `state` returned it.
          files: The files as `state` returned them.
          logger: Receives the differences, and the progress of reading.
          midway: Whether the checkpoint was saved in the middle of the call of `train` that now
            resumes. Then that call has taken batches already, and an early end of the data is an
            error.

          read: Whether to read the data up to the position now, where that is needed. Otherwise
            `catch_up` does.

        Raises:
          DataError: The data end before the position, or can't be brought there.
        """
        batches, skip = int(state["batches"]), int(state["skip"])
        if changes := differences(state["identity"], self.reader.identity()):
            what = ", ".join(f"{key} {change}" for key, change in changes.items())
            logger.info(
                f"the data differ from the checkpoint's, so they start from the beginning: {what}"
            )
            return
        if midway:
            self.taken = int(state.get("taken", batches))
        if self.reader.seekable:
            self.restart(batches)
            self._blocks = state.get("blocks")
            return
        try:
            # Now, since the script may read the same data itself before the next call of `train`.
            restored = self.resume_strategy.restore(self.input.iterator, files)
        except (tf.errors.OpError, ValueError, AssertionError) as error:
            raise DataError(
                f"The data set can't be brought to the checkpoint's position ({error}). It is "
                "built differently from the one that was trained on. Use that one, or start in a "
                "new workdir with tfloss.load_weights."
            ) from None
        self.batches, self._blocks = batches, state.get("blocks")
        passes = int(state["passes"])
        if restored:
            self.passes = passes
            self.resume_strategy.restored(batches - skip, files)
        self._behind = _Behind(
            passes=0 if restored else passes,
            batches=skip if restored else batches,
            first=state["first"],
        )
        if read:
            self.catch_up(logger)

    def catch_up(self, logger: ChiefLogger) -> None:
        """Reads the data up to the position that `resume` was given, unless it has done so.

        Args:
          logger: Receives the progress, and whether the data differ from those of the checkpoint.

        Raises:
          DataError: The data end before the position.
        """
        behind = self._behind
        if behind is None:
            return
        batches, blocks = self.batches, self._blocks
        reason = self.resume_strategy.reason
        why = f"; {reason}. tfloss.data.Source needs no reading" if reason else ""
        try:
            for _ in range(behind.passes):
                read_past(self.input.iterator, None, logger)
                self.restart()
            if behind.batches:
                logger.info(
                    f"reading past {behind.batches:,} batches, up to the checkpoint's position{why}"
                )
                read_past(self.input.iterator, behind.batches, logger)
        except tf.errors.OutOfRangeError:
            raise DataError(
                f"The checkpoint is at batch {batches:,} of the data, but the data end earlier. "
                "Train on the same data, or start in a new workdir with tfloss.load_weights."
            ) from None
        self.batches, self._blocks, self._behind = batches, blocks, None
        before = behind.first
        now = None if self.resume_strategy.first is None else self.resume_strategy.first.checksum
        if None not in (before, now) and before != now:
            logger.info(
                "the data set gives other batches than when training began: its first batch "
                "differs. Training continues, but will not match an uninterrupted run exactly. Set "
                "a seed on every shuffle, remove deterministic=False, or use tfloss.data.Source."
            )

    def compare_workers(self, agreement: Agreement) -> None:
        """Warns if the first batches of several workers differ. Call it after the first batch."""
        if self.resume_strategy.first is not None:
            self.resume_strategy.first.compare(agreement)

    def after_end(self, step: int, steps: int) -> None:
        """Starts the data again if an earlier `train` call took the last batch; otherwise raises.

        Args:
          step: Completed updates.
          steps: The step that was asked for.

        Raises:
          DataError: The data are empty, or ended too early; the message says where.
        """
        if self.taken:
            raise DataError(
                f"The data set ended after {self.batches} batches, at step {step} of {steps}. Call "
                ".repeat() on it, or ask for fewer steps."
            ) from None
        if self.batches == 0:
            if self._batches_per_step > 1:
                raise DataError(
                    f"The data set has fewer batches than one step takes (accumulate="
                    f"{self._batches_per_step}). Call .repeat() on it, or accumulate less."
                ) from None
            raise DataError("The data set is empty: it yielded no batch.") from None
        self.restart()

    def _record(self) -> None:
        """Records the iterator's state, unless it is behind an error that is still to be raised."""
        with self.input.paused() as ahead:
            if ahead is not None:
                self.resume_strategy = self.resume_strategy.record(
                    self.input.iterator, self.batches + ahead
                )

    def _new_stacker(self, iterator: Any) -> BatchStacker:
        """Stacks the batches of the iterator from its position on."""
        self._keep_at = self._clock() + _KEEP_SECONDS

        def on_first_batch() -> None:
            # Before its first batch a shuffle has no order, and no state to record.
            if self._keeps and self.resume_strategy.records:
                self._record()

        return BatchStacker(
            iterator,
            self._batches_per_step,
            endless=self.reader.endless,
            alignment=self._log_every,
            current_step=self._current_step,
            on_first_batch=on_first_batch,
            state=self._blocks,
        )
