"""A data set as the trainer needs it: distributed over replicas, its batches described.

With several workers each reads the whole data set, and takes its own replicas' parts of every
batch. So all must see the same batches: seed what shuffles. A function of an `InputContext` reads
what is this worker's only; its batches are cut over this worker's replicas.

Each global batch is cut into one part a replica, in order, of sizes that differ by at most one:
batches need not divide, and a replica may get no example at all. (TensorFlow's own way cuts
the data set's `batch` op, and cuts otherwise if it doesn't find one.) Host code. Nothing is known
of what is in a batch: it is any nest that `tf.data` yields.
"""

import contextlib
import functools
import math
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from tfloss.common.logger import ChiefLogger
from tfloss.data.distributed import (
    Data,
    as_dataset,
    check_tpu_spec,
    distribute,
    replica_spec,
    static_batch_size,
    without_autotune,
)
from tfloss.data.first_batch import FirstBatch
from tfloss.data.identity import differences, structure
from tfloss.data.nondeterminism import nondeterministic_inputs, unsaveable_inputs
from tfloss.data.position import (
    MAX_STATE_BYTES,
    IteratorStates,
    iterator_files,
    read_past,
    restore_iterator,
)
from tfloss.data.source import Source
from tfloss.data.stacked_batches import BatchStacker, raised_by_data
from tfloss.distribute.agreement import Agreement
from tfloss.distribute.strategy import worker_position
from tfloss.errors import DataError

# An iterator that is read ahead is past what a checkpoint needs, so a state from before is saved:
# one is kept so often, and with no more than this share of the time.
_KEEP_SECONDS = 10.0
_KEEP_SHARE = 0.01


class Feed:
    """One data set under one strategy, and the position in it.

    Args:
      data: a data set of global batches; a `Source`; or `input_fn(tf.distribute.InputContext)` that
        makes one of this worker's batches. They are to be of the same size on all workers; where
        the data of one ends earlier, it trains on with no examples until that of all has ended.
      strategy: splits each batch over its replicas.
      per_step: batches that a step takes.
      keeps: whether the position will be asked for.
      clock: seconds.

    Attributes:
      element_spec: of one replica's batch.
      batch_size: examples in a global batch, or None if that is not known beforehand.
      batches: how many were trained on since the data's beginning.
      passes: how often the data were begun anew: a shuffle may have another order each time.
      way: how this position is found again: "seek", "iterator" or "skip".
      iterator: at the next batch.
      blocks: what takes the iterator's batches in blocks, or None.
      used: whether a batch was taken since the last (re)start.
      steps_per_epoch: batches in the data set, or None if it repeats or doesn't say.

    Raises:
      DataError: not a data set, or an empty one as far as it knows itself.
    """

    def __init__(
        self,
        data: Data,
        strategy: tf.distribute.Strategy,
        per_step: int = 1,
        *,
        keeps: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._clock, self._keep_at = clock, 0.0
        self.data, self.strategy, self._per_step, self._keeps = data, strategy, per_step, keeps
        self._worker, self._workers = worker_position(strategy)
        self._own = self._workers > 1 and not isinstance(data, tf.data.Dataset)
        self.dataset = self._dataset(0)
        size = static_batch_size(self.dataset.element_spec)
        self.batch_size = size and size * (self._workers if self._own else 1)
        cardinality = int(self.dataset.cardinality())
        if cardinality == 0:
            raise DataError("The data set is empty: it has no batch at all.")
        self.steps_per_epoch = float(cardinality) if cardinality > 0 else None
        if isinstance(data, Source):
            self.batch_size, self.steps_per_epoch = data.batch_size, data.steps_per_epoch
        if isinstance(strategy, tf.distribute.TPUStrategy):
            check_tpu_spec(self.dataset.element_spec)
        self.element_spec = replica_spec(self.dataset.element_spec, strategy)
        self.reason = ""  # why there is no state of an iterator
        self.way = "seek" if isinstance(data, Source) else "iterator"
        if self.way == "iterator" and strategy.num_replicas_in_sync > 1:
            self.way, self.reason = "skip", "it is cut over several replicas"
        elif self.way == "iterator" and (bad := unsaveable_inputs(self.dataset)):
            self.way, self.reason = "skip", "no checkpoint can hold the state of " + ", ".join(bad)
        self._first = FirstBatch() if self.way == "skip" and not self._own else None
        self.step, self.passes = 0, -1
        self._midway = False
        self.restart()

    def _dataset(self, start: int) -> tf.data.Dataset:
        """The batches of this process, a `Source`'s from number `start` on."""
        if isinstance(self.data, Source):
            found = self.data.dataset(start, shard=self._worker, shards=self._workers)
            found = found.prefetch(2)  # read ahead; what counts is what was trained on
        else:
            found = as_dataset(self.data, self.strategy, per_worker=self._own)
        return without_autotune(found)

    def restart(self, batches: int = 0) -> None:
        """Goes back to the first batch; of a `Source`, to any."""
        self.passes += 1
        if self.way == "seek":
            self._sought(batches)
        else:
            watched = self.dataset if self._first is None else self._first.watch(self.dataset)
            self.iterator = iter(distribute(watched, self.strategy, per_worker=self._own))
        self.blocks: BatchStacker | None = None
        self.batches = batches
        self._states = IteratorStates(batches)

    def warn(self, deterministic: bool = False) -> None:
        """Warns of what keeps a resumed run from seeing what this one will see.

        Args:
          deterministic: it is an error; op determinism is on.

        Raises DataError.
        """
        bad = []
        if self.way != "seek":
            bad = nondeterministic_inputs(self.dataset, op_determinism=deterministic)
        if self.way == "iterator":  # which saves what a shuffle has drawn
            bad = [one for one in bad if "without a seed" not in one]
        if bad:
            text = (
                "Read again, the data set may give other batches or another order, so a resumed "
                "run would not go on exactly:" + "".join(f"\n  {one}" for one in bad)
            )
            if deterministic:
                raise DataError(text)
            warnings.warn(text, stacklevel=2)

    def start(self, step: int) -> None:
        """A run begins at a step: the data are trained on from where they are."""
        self.step = step

    def reached(self, step: int) -> None:
        """So many updates are done."""
        self.batches += (step - self.step) * self._per_step
        self.step = step

    def keep(self) -> None:
        """Keeps a state now and then, so that a resumed run needn't read much again."""
        if self.blocks is None or not self.blocks.reads_ahead or not self._keeps:
            return
        began = self._clock()
        if self.way != "iterator" or began < self._keep_at:
            return
        self._states.at(self.batches)  # older ones than that are forgotten
        with self.blocks.paused() as ahead:
            self._keep_state(ahead)
        now = self._clock()
        self._keep_at = now + max(_KEEP_SECONDS, (now - began) / _KEEP_SHARE)

    @property
    def used(self) -> bool:
        """Whether a batch was trained on since the last (re)start."""
        return self.batches > 0

    def failed(self, error: Exception) -> bool:
        """Whether it is the data that raised an error, rather than the step that took them."""
        return any(
            raised_by_data(one, error) for one in (self.iterator, self.blocks) if one is not None
        )

    def mark(self) -> Callable[[], None] | None:
        """Gives what brings the iterator back to where it is now, or None where nothing can."""
        if self.way == "seek":
            return functools.partial(self.restart, self.batches)
        if self.way == "iterator":
            files = iterator_files(self.iterator, MAX_STATE_BYTES)
            if not isinstance(files, str):
                return functools.partial(restore_iterator, self.iterator, files)
        return None

    def after_error(self) -> None:
        """The data raised an error: they go on behind it, without the rest of its step."""
        behind = self.blocks is None or self.blocks.drop_step()
        if self.way == "seek":
            # The iterator may have lost any part of a batch.
            self.restart(self.batches + self._per_step)
        elif self.way == "iterator" and self._keeps and behind:
            # States from before it are of no use: the way from them leads over it.
            self._states = IteratorStates(self.batches)
            self._keep_state(0)

    def _back(self, ahead: int) -> Callable[[], Any] | None:
        """Gives what takes the iterator to so many batches after those that were trained on."""
        if self.way == "seek":
            return functools.partial(self._sought, self.batches + ahead)
        files, skip = self._states.at(self.batches + ahead, forget_older=False)
        if self.way != "iterator" or not files:
            return None
        return functools.partial(self._restored, files, skip)

    def _sought(self, batches: int) -> Any:
        self.dataset = self._dataset(batches)
        self.iterator = iter(distribute(self.dataset, self.strategy, per_worker=self._own))
        return self.iterator

    def _restored(self, files: Mapping[str, bytes], skip: int) -> Any:
        restore_iterator(self.iterator, files)
        read_past(self.iterator, skip, None)
        return self.iterator

    def identity(self) -> dict[str, Any]:
        """What the batches depend on, as far as it is known; JSON."""
        if isinstance(self.data, Source):
            return {"source": self.data.identity()}
        return {
            "batches": int(self.dataset.cardinality()),
            "batch_size": self.batch_size,
            "structure": structure(self.dataset.element_spec),
        }

    def state(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        """The position, for a checkpoint: as JSON, and files."""
        files: dict[str, bytes] = {}
        skip = self.batches
        if self.way == "iterator":
            with self.blocks.paused() if self.blocks else contextlib.nullcontext(0) as ahead:
                self._keep_state(ahead)
            if self.way == "iterator":
                files, skip = self._states.at(self.batches)
        found = {"way": self.way, "batches": self.batches, "skip": skip, "passes": self.passes}
        first = self._first.checksum if self._first is not None else None
        return found | {"identity": self.identity(), "first": first}, files

    def _keep_state(self, ahead: int) -> None:
        """Keeps the iterator's state, which is so many batches ahead of training.

        Large ones are not kept, if reading the data again gives the same.
        """
        repeatable = not nondeterministic_inputs(self.dataset)
        now = iterator_files(self.iterator, MAX_STATE_BYTES if repeatable else math.inf)
        if isinstance(now, str):
            self.way, self.reason = "skip", now
        else:
            self._states.add(self.batches + ahead, now)

    def resume(
        self,
        state: Mapping[str, Any],
        files: Mapping[str, bytes],
        logger: ChiefLogger,
        *,
        midway: bool = False,
    ) -> None:
        """Goes to a position that was saved, of the same data.

        Other data begin at their beginning: that is said, and what differs.

        Args:
          state, files: what `state` gave.
          logger: Receives what differs, and the progress.
          midway: it was saved in the middle of a call of `train`, which is to be gone on with: if
            there are no more batches, they have run out.

        Raises:
          DataError: the data end before it, or can't be brought there.
        """
        batches = int(state["batches"])
        if changes := differences(state["identity"], self.identity()):
            what = ", ".join(f"{key} {change}" for key, change in changes.items())
            logger.info("the data are not those of the checkpoint, so they begin anew: " + what)
            return
        self._midway = midway and batches > 0
        if self.way == "seek":
            self.restart(batches)
            return
        skip = int(state["skip"])
        try:
            if files and self.way == "iterator":
                restore_iterator(self.iterator, files)
            else:
                skip = batches
                for _ in range(int(state["passes"])):
                    read_past(self.iterator, None, logger)
                    self.restart()
            self.passes = int(state["passes"])
            self._states = IteratorStates(batches - skip, files if skip < batches else None)
            if skip:
                why = f"; {self.reason}. tfloss.data.Source would go there at once"
                logger.info(
                    f"reading past {skip:,} batches, to where the checkpoint is in the data"
                    + (why if self.reason else "")
                )
                read_past(self.iterator, skip, logger)
        except tf.errors.OutOfRangeError:
            raise DataError(
                f"The checkpoint is at batch {batches:,} of the data, and they end before. Train "
                "on the same data, or start in a new workdir with tfloss.load_weights."
            ) from None
        except (tf.errors.OpError, ValueError, AssertionError) as error:
            raise DataError(
                f"The data set can't be brought to where the checkpoint is ({error}). It is made "
                "otherwise than the one that was trained on: go back to that, or start in a new "
                "workdir with tfloss.load_weights."
            ) from None
        self.batches = batches
        before, now = state["first"], self._first and self._first.checksum
        if None not in (before, now) and before != now:
            logger.info(
                "the data set gives other batches than when training began: its first one differs. "
                "So the run goes on, but not as it would have done undisturbed. Seed what "
                "shuffles, leave out deterministic=False, or use tfloss.data.Source."
            )

    def stacked(self, per_step: int, rhythm: int = 1) -> BatchStacker:
        """The rest of the data in blocks, that begin at multiples of `rhythm` steps if they can."""
        if self.blocks is None:
            endless = self.dataset.cardinality() == tf.data.INFINITE_CARDINALITY
            # A shuffle has no order, and no state that says which, before its first batch.
            kept = self._keeps and self.way == "iterator"
            begun = functools.partial(self._keep_state, 1) if kept else lambda: None
            self._keep_at = self._clock() + _KEEP_SECONDS
            self.blocks = BatchStacker(
                self.iterator,
                per_step,
                endless=bool(endless),
                alignment=rhythm,
                current_step=lambda: self.step,
                on_first_batch=begun,
                rewind=self._back,
            )
        return self.blocks

    def batch_bytes(self) -> int:
        """The size of a batch; one of unknown length counts as one example."""
        leaves = tf.nest.flatten(self.element_spec)
        return sum(x.dtype.size * math.prod(d or 1 for d in x.shape) for x in leaves)

    def after_call(self, agreement: Agreement) -> None:
        """Some batches were taken. Warns if several workers' differ."""
        if self._first is not None:
            self._first.compare(agreement)

    def after_end(self, done: int, step: int, steps: int) -> None:
        """Starts anew if an earlier `train` call took the last batch; otherwise raises.

        Args:
          done: batches taken by this call of `train`.
          step: updates completed.
          steps: updates asked for.

        Raises:
          DataError: it is empty, or it ended too early and after how many batches.
        """
        if done or self._midway:
            self._midway = False
            raise DataError(
                f"The data set ended after {self.batches} batches, at step {step} of {steps}. Call "
                ".repeat() on it, or ask for fewer steps."
            ) from None
        if not self.used:
            raise DataError("The data set is empty: it yielded no batch.") from None
        self.restart()
        self.start(step)

    def check_same_structure(self, other: "Feed") -> None:
        """Raises DataError, naming what differs, if `other` yields other kinds of batches."""
        before, now = structure(other.element_spec), structure(self.element_spec)
        if changes := differences(before, now):
            raise DataError(
                "The batches have another structure than those of the last `train` call:\n"
                + "".join(f"  {key}: {changes[key]}\n" for key in sorted(changes))
                + "Use one Trainer for one kind of batch."
            )
