"""Which of the engine's modes a trainer runs in, and the engine of each. Host code.

`jit="auto"` tries them (`tfloss.engine.autotune`) and writes its choice into the workdir.
"""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfloss.common.logger import ChiefLogger
from tfloss.data.feed import Feed
from tfloss.data.stacked_batches import MAX_BLOCK_BYTES, MIN_BLOCK_STEPS, reason_not_to_stack
from tfloss.distribute.agreement import Agreement
from tfloss.engine.autotune import Tuner, load_choice, save_choice
from tfloss.engine.engine import Engine, StepLogs
from tfloss.errors import DataError, ModelError, NonFiniteLossError, TflossError
from tfloss.inspect.unsaveable_random_ops import UnsaveableOpCheck
from tfloss.step.train_step import TrainStep

FILE = "engine.json"
MOST_STATE_BYTES = 256 * 2**20  # a loop that is compiled whole needs a second copy of it
_FIXED = {False: "graph", True: "step", "loop": "loop"}


class ModeRunner:
    """Runs the steps of one trainer.

    Args:
      jit: False, True, "loop" or "auto", as `Trainer` takes it.
      train_step: the step.
      log_every_step: also compute the model's scalar summaries on every step.
      workdir: where a choice is kept, or None.
      logger: Receives the line that tells the chosen mode.
      deterministic: "auto" is the graph, since a choice by the clock may differ the next time; a
        step with unsaveable random ops is refused (`tfloss.inspect.unsaveable_random_ops`).
      saved: gives the variables that a checkpoint holds, when a step has been traced.
      rhythm: steps between logs, at which calls are cut.
      clock: seconds.

    Attributes:
      most: steps that a call may have, as the last run's loop found it.

    Raises ValueError for another value of jit.
    """

    def __init__(
        self,
        jit: bool | str,
        train_step: TrainStep,
        *,
        log_every_step: bool,
        workdir: Path | None,
        agreement: Agreement,
        logger: ChiefLogger,
        deterministic: bool = False,
        saved: Callable[[], Iterable[Any]] | None = None,
        rhythm: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ):
        if not (isinstance(jit, bool) or jit in ("loop", "auto")):
            raise ValueError(f"jit must be True, False, 'loop' or 'auto', got {jit!r}.")
        self._jit = False if deterministic and jit == "auto" else jit
        self._step, self._every_step = train_step, log_every_step
        self._rhythm = rhythm
        self._check = UnsaveableOpCheck(deterministic, saved)
        self._file = workdir / FILE if workdir is not None and agreement.chief else None
        self._agreement, self._logger, self._clock = agreement, logger, clock
        self._engines: dict[str, Engine] = {}
        self._compiles: set[str] = set()  # modes that have run
        self._signature: tuple | None = None
        self._chosen: str | None = None
        self._settled = False  # whether the choice is also that of later runs
        self._tracing = 0.0
        self._tuner: Tuner | None = None
        self._feed: Feed | None = None
        self._guard = True
        self.most = 1

    def prepare(self, feed: Feed, guard: bool, steps_left: Callable[[], int]) -> None:
        """Before a run: new engines if something that is frozen in a trace has changed.

        Raises DataError or ModelError where a loop compiled whole was asked for and can't be.
        """
        if self._tuner is not None:  # the last run ended before it was decided
            self._tracing = max(self._tracing, self._tuner.tracing)
        self._feed, self._guard, self._tuner = feed, guard, None
        signature = (*self._step.signature(), guard)
        if signature != self._signature:
            self._engines, self._compiles, self._signature = {}, set(), signature
        if self._jit == "loop":
            if self._step.strategy.num_replicas_in_sync > 1:
                raise ModelError("jit='loop' is for one replica. On several use jit=True.")
            if reason := reason_not_to_stack(feed.element_spec):
                raise DataError(f"jit='loop' needs batches that can be stacked, but {reason}.")
        if self._jit != "auto":
            self._chosen = _FIXED[self._jit]
        elif not self._settled:  # the last run may have been too short to try anything
            self._chosen = None
            if self._file is not None:
                self._chosen = load_choice(self._file, self._circumstances())
            if self._chosen not in (None, "graph", *self._candidates()):
                self._chosen = None
            self._settled = self._chosen is not None
        if self._chosen is None:
            if modes := self._candidates():
                self._tuner = Tuner(modes, steps_left, self._clock, self._tracing)
            else:
                self._chosen = "graph"
        if self._chosen == "loop":
            self._blocks().reads_ahead = True

    def run(self, count: int, recording: bool) -> StepLogs:
        """Runs up to `count` steps of the data, at least one. Raises as `Engine.run` does.

        Args:
          count: how many.
          recording: whether the one step is to be recorded.
        """
        if self._tuner is None or recording:
            return self._run(self._chosen or "graph", count, recording)
        assert self._tuner.request is not None
        mode, most = self._tuner.request
        feed = self._feed
        assert feed is not None
        untried = mode != "graph" and mode not in self._compiles
        # A step takes its batch inside the program, which may not compile.
        go_back = feed.mark() if untried and mode == "step" else None
        began = self._clock()
        try:
            block = self._run(mode, min(count, most), recording)
        except (tf.errors.OutOfRangeError, NonFiniteLossError):
            raise
        except (TflossError, tf.errors.OpError) as error:
            if not untried or feed.failed(error):
                raise
            if go_back is not None:
                go_back()
            self._tuner.failed(error)
            self._end_if_decided()
            return self._run("graph", 1, recording)
        self._compiles.add(mode)
        block.rows()  # waits for the device
        seconds = self._clock() - began - float(block.waited)
        self._tuner.answer(len(block.rows()), seconds)
        self._end_if_decided()
        return block

    @property
    def records(self) -> bool:
        """Whether a step that is logged must be recorded: not if the model has no summaries."""
        return all(engine.has_summaries() for engine in self._engines.values())

    @property
    def looping(self) -> bool:
        """Whether steps run in a loop compiled whole, and that is settled."""
        return self._chosen == "loop"

    def _run(self, mode: str, count: int, recording: bool) -> StepLogs:
        feed = self._feed
        assert feed is not None
        if mode not in self._engines:
            self._engines[mode] = Engine(
                self._step,
                mode=mode,
                log_every_step=self._every_step,
                guard=self._guard,
                check=self._check,
            )
        source = feed.iterator
        if mode == "loop":
            source = self._blocks()
            source.reads_ahead |= self._chosen == "loop"
        elif feed.blocks is not None and (feed.blocks.reads_ahead or feed.blocks.has_pending()):
            source, count = feed.blocks, 1
        return self._engines[mode].run(source, count, recording=recording)

    def _blocks(self) -> Any:
        assert self._feed is not None
        return self._feed.stacked(self._step.accumulate, self._rhythm)

    def _end_if_decided(self) -> None:
        tuner = self._tuner
        if tuner is None or tuner.request is not None:
            return
        self._chosen, self._tuner = tuner.mode, None
        self._settled = len(tuner.rates) > 1 or bool(tuner.failure)
        self._tracing = tuner.tracing
        self._engines = {k: v for k, v in self._engines.items() if k in ("graph", tuner.mode)}
        if len(tuner.rates) > 1 or tuner.failure or self._file is not None:
            self._logger.info(f"runs {tuner.why}.")
        if self._file is not None and len(tuner.rates) > 1:
            save_choice(self._file, tuner, self._circumstances())

    def _candidates(self) -> list[str]:
        """What may be faster than the graph."""
        feed, strategy = self._feed, self._step.strategy
        assert feed is not None
        if self._agreement.workers > 1 or isinstance(strategy, tf.distribute.TPUStrategy):
            return []  # each worker would choose for itself; a TPU's programs are always compiled
        if reason_not_to_stack(feed.element_spec):
            return []  # XLA would compile for each shape anew
        if strategy.num_replicas_in_sync > 1:
            return ["step"]
        variables = [*self._step.model.variables]
        for optimizer in self._step.optimizers.values():
            variables += optimizer.variables
        size = sum(tf.as_dtype(v.dtype).size * v.shape.num_elements() for v in variables)
        small = feed.batch_bytes() * self._step.accumulate * MIN_BLOCK_STEPS <= MAX_BLOCK_BYTES
        return ["loop", "step"] if size <= MOST_STATE_BYTES and small else ["step"]

    def _circumstances(self) -> dict[str, Any]:
        """What a choice depends on, as far as it is known."""
        gpus = tf.config.list_physical_devices("GPU")
        details = [tf.config.experimental.get_device_details(one) for one in gpus]
        weights = self._step.model.trainable_variables
        return {
            "tensorflow": tf.__version__,
            "devices": [one.get("device_name", "GPU") for one in details] or ["CPU"],
            "replicas": self._step.strategy.num_replicas_in_sync,
            "accumulate": self._step.accumulate,
            "weights": sum(v.shape.num_elements() for v in weights),
        }
