"""Runs steps in the engine's modes, and decides which mode. Host code.

`jit="auto"` measures the modes on the run's own first steps (`tfloss.engine.autotune`) and writes
the choice into the workdir.
"""

import functools
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfloss.common.logger import ChiefLogger
from tfloss.data.batch_reader import BatchReader
from tfloss.data.block_size import (
    MAX_BLOCK_BYTES,
    MIN_BLOCK_STEPS,
    reason_not_to_compile,
    reason_not_to_stack,
)
from tfloss.data.feed import Feed
from tfloss.distribute.agreement import Agreement
from tfloss.engine.autotune import Tuner
from tfloss.engine.background_compilation import BackgroundCompiler
from tfloss.engine.engine import Engine, StepLogs
from tfloss.engine.mode_announcement import ModeAnnouncement
from tfloss.engine.mode_choice import circumstances, load_choice, save_choice
from tfloss.engine.step_traces import SILENT, Kind, StepTraces
from tfloss.engine.trace_comparison import compare_hyperparameters, compare_traces
from tfloss.errors import DataError, ModelError, NonFiniteLossError, TflossError
from tfloss.inspect.python_values import PythonValues
from tfloss.inspect.unsaveable_random_ops import UnsaveableOpCheck
from tfloss.optimizers import hyperparameters
from tfloss.step.output import StepOutput
from tfloss.step.trace_options import Guarded, Jit, Mode
from tfloss.step.train_step import TrainStep
from tfloss.step.watched import WatchRequest

FILE = "engine.json"
ANNOUNCED_SECONDS = 5.0  # a compilation that is expected to take this long is announced
_SECONDS_BETWEEN_LOOKS = 1.0  # for Python values that have changed
MAX_STATE_BYTES = 256 * 2**20  # a loop that is compiled whole needs a second copy of the state
_FIXED: dict[Jit, Mode] = {False: "graph", True: "step", "loop": "loop"}


class ModeRunner:
    """Runs the steps of one trainer in the mode that was asked for, or in the fastest one.

    Args:
      jit: False, True, "loop" or "auto", as `Trainer` takes it.
      train_step: The step.
      log_every_step: Whether to compute the model's scalar summaries on every step.
      workdir: The directory that keeps the choice, or None.
      agreement: What the workers decide together.
      logger: Receives the line that names the chosen mode.
      deterministic: Whether "auto" means the graph, since a choice by the clock may differ the next
        time. Then a step with state that no checkpoint holds is refused.
      saved: A function that returns the variables that a checkpoint holds, once a step was traced.
      on_trace: Is given the tags of the step's scalars and summaries when it is traced, before it
        runs; it may raise.
      clock: A function that returns the time in seconds.

    Attributes:
      steps_limit: The largest call size that the loop used last; the next run starts from it.
      expected: The kind of a later step, which is traced with the first one; see `Engine.run`.

    Raises:
      ValueError: `jit` has another value.
    """

    def __init__(
        self,
        jit: Jit,
        train_step: TrainStep,
        *,
        log_every_step: bool,
        workdir: Path | None,
        agreement: Agreement,
        logger: ChiefLogger,
        deterministic: bool = False,
        saved: Callable[[], Iterable[Any]] | None = None,
        on_trace: Callable[[Sequence[str]], None] = lambda tags: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        if not (isinstance(jit, bool) or jit in ("loop", "auto")):
            raise ValueError(f"jit must be True, False, 'loop' or 'auto', got {jit!r}.")
        self._jit: Jit = False if deterministic and jit == "auto" else jit
        self._step, self._every_step = train_step, log_every_step
        self._check = UnsaveableOpCheck(deterministic, saved)
        self._file = workdir / FILE if workdir is not None and agreement.chief else None
        self._agreement, self._logger, self._clock = agreement, logger, clock
        self._on_trace = on_trace
        self._engines: dict[str, Engine] = {}
        self._traces: StepTraces | None = None  # of all engines
        self._compiled: set[str] = set()  # modes that have run, and so do compile
        self._signature: tuple[Any, ...] | None = None
        self._prepared = False  # whether `prepare` has run and no step after it
        self._numbers: tuple[Any, ...] = ()  # the parts of it that a hook may change
        self._frozen: tuple[str, ...] = ()
        self._found: dict[str, Any] = {}
        self._mode: Mode | None = None
        self._settled = False  # whether the choice also counts for later runs
        self._tracing = 0.0
        self._tuner: Tuner | None = None
        self._announcement: ModeAnnouncement | None = None
        self._guard: Guarded = "losses and gradients"
        self._values: PythonValues | None = None  # that the traces read
        self._looked = 0.0
        self._said: set[str] = set()
        self._compiler = BackgroundCompiler(train_step)
        self.steps_limit = 1
        self.expected: Kind = SILENT

    @property
    def mode(self) -> Mode | None:
        """The mode that steps run in: "graph", "step" or "loop"; None while modes are measured."""
        return self._mode

    @property
    def records(self) -> bool:
        """Whether a logged step must be recorded. False if the model has no summaries."""
        self._begin_if_prepared()
        return all(engine.has_summaries() for engine in self._engines.values())

    def prepare(self, reader: BatchReader, guard: Guarded, steps_left: Callable[[], int]) -> None:
        """Prepares a run: chooses the mode, or begins to measure.

        Args:
          reader: The data of the run.
          guard: What must be finite, or training stops before the update.
          steps_left: A function that returns the number of updates still to be made.

        Raises:
          DataError, ModelError: `jit=True` or `jit="loop"` was asked for, and can't be.
        """
        if self._tuner is not None:  # the last run ended before the mode was decided
            self._tracing = max(self._tracing, self._tuner.tracing)
        self._guard, self._tuner, self._prepared = guard, None, True
        self._found = circumstances(self._step)  # before a hook freezes anything
        if self._jit == "loop":
            _check_loop(self._step, reader)
        if self._jit is True and (reason := reason_not_to_compile(reader.element_spec)):
            raise DataError(
                f"jit=True compiles the step with XLA, which can't: {reason}. Leave it out of the "
                "batch, turn it into numbers in the input pipeline, or train with jit=False."
            )
        candidates = self._candidates(reader)
        if self._jit != "auto":
            self._mode = _FIXED[self._jit]
        elif not self._settled:  # the last run may have been too short to measure anything
            self._mode = None
            self._tuner = self._begin_to_tune(candidates, steps_left)
            if self._tuner is None and self._mode is None:
                self._mode = "graph"

    def _begin_to_tune(self, candidates: list[Mode], steps_left: Callable[[], int]) -> Tuner | None:
        """What measures the modes, or compiles that of an earlier run. None: it is settled."""
        known = None if self._file is None else load_choice(self._file, self._found)
        if known is not None and known.mode not in ("graph", *candidates):
            known = None
        beside = self._compiler.possible
        tuner = functools.partial(
            Tuner, steps_left=steps_left, clock=self._clock, tracing=self._tracing, beside=beside
        )
        if known is None:
            return tuner(candidates) if candidates else None
        if known.mode == "loop" and beside:  # training doesn't wait for it
            return tuner(["loop"], known=known)
        self._mode, self._settled = known.mode, True
        self._announcement = ModeAnnouncement(known, self._logger, self._clock)
        return None

    def run(
        self, feed: Feed, count: int, recording: bool, watch: WatchRequest | None = None
    ) -> StepLogs:
        """Runs up to `count` steps, at least one.

        Args:
          feed: The data.
          count: The most steps to run.
          recording: Whether the step is to return its summaries; then `count` is 1.
          watch: What to watch in the step, or None; with it `count` is 1, too.

        Returns:
          What the steps reported.

        Raises:
          The same as `Engine.run`.
        """
        self._begin_if_prepared()
        compare_hyperparameters(self._agreement, self._step)
        self._retrace_if_changed()
        if self._values is None:
            self._values = self._step.python_values()
            self._looked = self._clock()
        elif self._clock() - self._looked >= _SECONDS_BETWEEN_LOOKS:
            self.warn_of_changes()
        if self._tuner is None or recording or watch:
            run = functools.partial(self._run, feed, self._mode or "graph", count, recording, watch)
            return run() if self._announcement is None else self._announcement.run(run)
        assert self._tuner.request is not None
        mode, limit = self._tuner.request
        untried = mode != "graph" and mode not in self._compiled
        # In the mode "step" the program takes its batch itself, and may not compile.
        restore = feed.snapshot() if untried and mode == "step" else None
        if untried and mode == "loop":
            began = self._clock()  # it may trace
            try:
                ready = self._compiler.ready(self._engine("loop"), feed)
            except Exception as error:  # noqa: BLE001 - of its trace too; the graph works
                return self._give_up(error, feed, recording)
            if not ready:
                logs = self._run(feed, "graph", count, recording)
                self._compiler.leave_core(self._clock() - began)
                return logs
        beside = mode == "loop" and self._compiler.used
        if untried and not beside and self._tuner.cost >= ANNOUNCED_SECONDS:
            self._logger.info(
                f"XLA compiles the training {mode}, which takes about {self._tuner.cost:.0f} s. "
                "jit=False would never compile."
            )
        began = self._clock()
        try:
            logs = self._run(feed, mode, min(count, limit), recording)
        except (tf.errors.OutOfRangeError, NonFiniteLossError):
            raise
        except (TflossError, tf.errors.OpError) as error:
            if not untried or feed.input.failed(error):
                raise
            if restore is not None:
                restore()
            return self._give_up(error, feed, recording)
        self._compiled.add(mode)
        logs.rows()  # waits for the device
        seconds = self._clock() - began - float(logs.waited)
        if untried and beside and self._compiler.seconds is not None:
            self._tuner.compiling[mode] = self._compiler.seconds
        self._tuner.answer(len(logs.rows()), seconds)
        self._end_if_decided()
        return logs

    def finish(self) -> None:
        """Ends a run: says what is left to say about it."""
        if self._announcement is not None:
            self._announcement.log()
        self.warn_of_changes()

    def _give_up(self, error: Exception, feed: Feed, recording: bool) -> StepLogs:
        """Runs a step as a graph, since the mode to be tried doesn't work."""
        assert self._tuner is not None
        self._tuner.failed(error)
        self._end_if_decided()
        return self._run(feed, "graph", 1, recording)

    def _begin_if_prepared(self) -> None:
        """Makes new engines if something that is frozen in a trace has changed before the run.

        It waits until the hooks have started, since they may freeze a part of the model.
        """
        if not self._prepared:
            return
        self._prepared = False
        signature = (*self._step.signature(), self._guard)
        self._numbers = hyperparameters.signature(self._step.optimizers)
        self._frozen = self._step.freezing.globs
        if signature != self._signature or (self._values and self._values.changed()):
            self._engines, self._compiled, self._signature = {}, set(), signature
            self._values = None

    def _retrace_if_changed(self) -> None:
        """Traces the step again if a hook has changed what is frozen in the trace."""
        numbers = hyperparameters.signature(self._step.optimizers)
        frozen = self._step.freezing.globs
        if numbers == self._numbers and frozen == self._frozen:
            return
        before = {name: dict(pairs) for name, *pairs in self._numbers}
        changes = [
            f"{name}.{attribute} {before[name].get(attribute)} -> {value}"
            for name, *pairs in numbers
            for attribute, value in pairs
            if before[name].get(attribute) != value
        ]
        if frozen != self._frozen:
            names = [", ".join(globs) or "nothing" for globs in (self._frozen, frozen)]
            changes.append(f"what is frozen, {names[0]} -> {names[1]}")
        self._logger.info(f"the step is traced again, since a hook has set {', '.join(changes)}")
        self._engines, self._compiled = {}, set()
        self._numbers, self._frozen = numbers, frozen
        self._signature = (*self._step.signature(), self._guard)
        self._values = None

    def warn_of_changes(self) -> None:
        """Warns once of everything that has changed since the step was traced, and is frozen."""
        self._looked = self._clock()
        changes = [] if self._values is None else self._values.changed()
        found = {
            one.label: f"{one.label} was {one.before!r}, and is {one.now!r}" for one in changes
        }
        # Without the hyperparameters, at whose change the step is traced again.
        # What a hook has thawed at the last step is no change that was missed.
        thawed = self._step.freezing.globs != self._frozen
        if self._signature and not thawed and self._step.signature()[:-1] != self._signature[:-2]:
            options = "trainable flags, loss weights, `clip_norm` or `fused_adam`"
            found[options] = f"{options} have changed"
        new = {label: text for label, text in found.items() if label not in self._said}
        self._said.update(new)
        if new:
            warnings.warn(
                f"Changed since the training step was traced: {'; '.join(new.values())}. A traced "
                "step keeps what it read, so the new values have no effect before the next "
                "`train` call. For a value that changes during training, use "
                "tfloss.current_step(), or a variable (add_weight(trainable=False)) that a hook "
                "assigns.",
                stacklevel=2,
            )

    def _run(
        self,
        feed: Feed,
        mode: Mode,
        count: int,
        recording: bool,
        watch: WatchRequest | None = None,
    ) -> StepLogs:
        """Runs steps in a mode, with its own engine."""
        read_ahead = self._mode == "loop" or (self._tuner is not None and self._tuner.promising)
        source = feed.input.source(mode, read_ahead=read_ahead)
        expected, self.expected = self.expected, SILENT
        engine = self._engine(mode)
        return engine.run(source, count, recording=recording, watch=watch, expected=expected)

    def _engine(self, mode: Mode) -> Engine:
        """The engine of a mode."""

        def compare(graph: Any, output: StepOutput) -> None:
            compare_traces(self._agreement, graph, output)
            self._on_trace(output.tags())

        if not self._engines:
            self._traces = StepTraces(
                self._step,
                guard=self._guard != "nothing",
                check=self._check,
                compare=compare,
            )
        if mode not in self._engines:
            self._engines[mode] = Engine(
                self._step,
                mode=mode,
                log_every_step=self._every_step,
                guard=self._guard != "nothing",
                check_gradients=self._guard == "losses and gradients",
                traces=self._traces,
            )
        return self._engines[mode]

    def _end_if_decided(self) -> None:
        """Takes the tuner's choice, says it, and keeps it, once the tuner has decided."""
        tuner = self._tuner
        if tuner is None or tuner.request is not None:
            return
        self._mode, self._tuner = tuner.mode, None
        self._settled = len(tuner.rates) > 1 or bool(tuner.failure)
        self._tracing = tuner.tracing
        self._engines = {k: v for k, v in self._engines.items() if k in ("graph", tuner.mode)}
        if len(tuner.rates) > 1 or tuner.failure or self._file is not None:
            self._announcement = ModeAnnouncement(tuner, self._logger, self._clock)
        if self._file is not None and len(tuner.rates) > 1 and not tuner.known:
            try:
                save_choice(self._file, tuner.choice, self._found)
            except OSError as error:  # a full disk
                self._logger.info(
                    f"{self._file} can't be written ({error.strerror}): a resumed run will measure "
                    "the modes again."
                )

    def _candidates(self, reader: BatchReader) -> list[Mode]:
        """The modes that may be faster than the graph."""
        strategy = self._step.strategy
        if self._jit != "auto":
            return []
        if self._agreement.workers > 1 or isinstance(strategy, tf.distribute.TPUStrategy):
            return []  # each worker would choose for itself; a TPU's programs are always compiled
        if reason_not_to_stack(reader.element_spec):
            return []  # XLA would compile the program again for each shape
        if strategy.num_replicas_in_sync > 1:
            return ["step"]
        state = self._step.state_bytes()
        block = reader.batch_bytes() * self._step.accumulate * MIN_BLOCK_STEPS
        fits = state <= MAX_STATE_BYTES and block <= MAX_BLOCK_BYTES
        return ["loop", "step"] if fits else ["step"]


def _check_loop(train_step: TrainStep, reader: BatchReader) -> None:
    """Raises ModelError or DataError if steps can't run in a loop compiled whole."""
    if train_step.strategy.num_replicas_in_sync > 1:
        raise ModelError("jit='loop' is for one replica. On several use jit=True.")
    if reason := reason_not_to_stack(reader.element_spec):
        raise DataError(f"jit='loop' needs batches that can be stacked, but {reason}.")
