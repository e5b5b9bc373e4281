"""The trainer: a model that reports its losses, an optimizer, data, and what happens beside.

    trainer = tfloss.Trainer(model, keras.optimizers.Adam(1e-3), workdir="runs/digits")
    result = trainer.train(dataset, steps=2_000)
    metrics = trainer.evaluate(test_set, {"accuracy": accuracy})

`train` is: make the variables, resume if there is a checkpoint, then until the step is
reached run as many steps in one call as nobody has to interrupt, and let the hooks that are
due do their work. All of it is host code.
"""

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfloss import replay
from tfloss.checkpoint import BackgroundWriter, CheckpointDirectory
from tfloss.common.logger import ChiefLogger
from tfloss.data.distributed import Data, as_dataset
from tfloss.data.feed import Feed
from tfloss.distribute.agreement import Agreement
from tfloss.distribute.strategy import check_strategy
from tfloss.engine.mode_runner import ModeRunner
from tfloss.errors import Aborted, CheckpointError
from tfloss.evaluation import BoundMetric, Evaluators, HostMetric
from tfloss.forward.losses import Weight
from tfloss.hooks import Hook, NaNGuard
from tfloss.hooks.run_info import RunInfo
from tfloss.inspect.determinism import enable_op_determinism
from tfloss.optimizers.ema import Ema
from tfloss.step.random_states import process_variables
from tfloss.step.train_step import TrainStep
from tfloss.summary import Summary
from tfloss.trainer.checkpointed_state import TrainerState, warn_if_unrestored
from tfloss.trainer.default_hooks import DefaultHooks
from tfloss.trainer.hook_list import running
from tfloss.trainer.log_window import LogWindow
from tfloss.trainer.loop import Loop
from tfloss.trainer.result import TrainResult
from tfloss.trainer.resume import Resume
from tfloss.trainer.workdir import writable
from tfloss.trainer.workdir_lock import locked


class Trainer:
    """Trains a Keras model that reports its own losses.

    Args:
      model: a `keras.Model`; `model(batch, training=True)` reports losses (see
        `tfloss.forward.losses`), `model(batch, training=False)` returns predictions. Create it, and
        the optimizer, inside `with strategy.scope()`.
      optimizer: a Keras optimizer, or groups: `{name: (optimizer, variables)}`; see `Group`.
      strategy: a `tf.distribute.Strategy`; by default the current one.
      workdir: where checkpoints, curves and metrics go. None: nothing is written.
      hooks: what happens beside training, in this order. The default hooks (`Progress`,
        `NaNGuard` and, with a workdir, `TensorBoard`, `MetricsFile` and `SaveCheckpoint`
        every ten minutes) are added, except where one of the same class is given.
      default_hooks: whether to add them.
      seed: seeds Python, NumPy and TensorFlow now, and the seed generators of the model's
        layers (Dropout, ...) when training starts from nothing. Initial weights depend on
        seeds drawn when layers were created: call `keras.utils.set_random_seed` before.
      steps_per_call: the most steps in one call of the device loop; "auto": as many as take about
        a second. Never changes the result, and hooks run at exactly their steps.
      log_every: steps between logs. What is logged of losses is the mean over these steps;
        summaries are those of the last of them. The last step of a run is logged too.
      log_every_step: log the losses and scalar summaries of every single step (still written
        every `log_every` steps, together).
      jit: True compiles forward and backward pass of each step with XLA, "loop" many steps and
        their updates as one program (one replica only). "auto" measures on the first steps which
        is the fastest, if the run is long enough for it, says so, and keeps its choice in the
        workdir. The results are the same up to rounding.
      loss_weights, clip_norm, accumulate, precision, ema, skip_nonfinite, fused_adam: see
        `TrainStep`.
      train_step: a subclass of `TrainStep`, for another algorithm.
      async_checkpoint: write checkpoints while training goes on; it waits only until the values
        are copied to the host's memory, which takes as much of it as they do.
      deterministic: the same bits each time, resumed or not: turns on TensorFlow's op determinism
        (for the whole process), refuses a step with state that no checkpoint can hold, and lets
        no clock choose the mode. Needs a seed. It costs speed.
      clock: seconds; injectable for tests.

    Raises:
      ModelError: model or optimizer created outside of the strategy's scope.
      OSError: a workdir that can't be written to.
      ValueError: an argument that makes no sense, by name.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: Any,
        *,
        strategy: tf.distribute.Strategy | None = None,
        workdir: str | Path | None = None,
        hooks: Iterable[Hook] = (),
        default_hooks: bool = True,
        seed: int | None = None,
        steps_per_call: int | str = "auto",
        log_every: int = 100,
        log_every_step: bool = False,
        jit: bool | str = "auto",
        loss_weights: Mapping[str, Weight] | None = None,
        clip_norm: float | None = None,
        accumulate: int = 1,
        precision: str | None = None,
        ema: float | Ema | None = None,
        skip_nonfinite: bool = False,
        fused_adam: bool = True,
        train_step: type[TrainStep] = TrainStep,
        async_checkpoint: bool = False,
        deterministic: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ):
        if not isinstance(model, keras.Model):
            raise ValueError(f"model must be a keras.Model, got {type(model).__name__}.")
        _check_positive("log_every", log_every)
        if steps_per_call != "auto":
            _check_positive("steps_per_call", steps_per_call)
        self.model = model
        self.optimizer = optimizer
        self.strategy = strategy or tf.distribute.get_strategy()
        check_strategy(self.strategy)
        self.agreement = Agreement(self.strategy)
        self.logger = ChiefLogger(self.agreement.chief)
        self.workdir = writable(Path(workdir)) if workdir is not None else None
        self.seed = seed
        self.log_every = log_every
        self.log_every_step = log_every_step
        self.deterministic = deterministic
        self.clock = clock
        self.error: BaseException | None = None
        self.step = 0
        self.run = RunInfo(0, 0)
        self.checkpoints = (
            CheckpointDirectory(self.workdir / "checkpoints") if self.workdir is not None else None
        )
        self.hooks: list[Hook] = list(hooks)
        self._own_hooks = list(hooks)
        self._defaults = DefaultHooks(default_hooks, self.workdir is not None)
        self._steps_per_call = steps_per_call
        if seed is not None:
            keras.utils.set_random_seed(seed)
        if deterministic:
            enable_op_determinism(seed)
        with self.strategy.scope():
            self.train_step = train_step(
                model,
                optimizer,
                loss_weights=loss_weights,
                clip_norm=clip_norm,
                jit=jit is True,
                accumulate=accumulate,
                precision=precision,
                ema=ema,
                skip_nonfinite=skip_nonfinite,
                fused_adam=fused_adam,
            )
        self._modes = ModeRunner(
            jit,
            self.train_step,
            log_every_step=log_every_step,
            workdir=self.workdir,
            agreement=self.agreement,
            logger=self.logger,
            deterministic=deterministic,
            rhythm=log_every,
            saved=lambda: [*self.state().variables().values(), *process_variables()],
            clock=clock,
        )
        self._feed: Feed | None = None
        self._resume = Resume(self, self.checkpoints, background=async_checkpoint)
        self._resumed = False
        self.stopped: str | None = None
        self.window = LogWindow(log_every, log_every_step, clock)
        self.stopwatch = self.window.stopwatch
        self._evaluators = Evaluators(model, self.train_step.loss_weights, self.strategy)

    # What a script calls

    def train(
        self,
        data: Data,
        steps: int,
        *,
        hooks: Iterable[Hook] = (),
        steps_per_epoch: float | None = None,
    ) -> TrainResult:
        """Trains until `steps` updates are done in all. Host code.

        The first call resumes from the newest whole checkpoint in the workdir, if there is one,
        in the data too. A second call goes on from where the first ended, in the data too if it
        is the same object.

        Args:
          data: a `tf.data.Dataset` of global batches, a `tfloss.data.Source`, or a function of a
            `tf.distribute.InputContext` that returns a data set. Elements may be any nest.
          steps: the global step to reach.
          hooks: more hooks, for this call.
          steps_per_epoch: for hooks that count epochs, where the data set repeats or doesn't
            know its own length.

        Raises:
          LossError, SummaryError, ModelError, DataError: bad input, before the first step.
          DataError: the data ended before `steps`, too; it says after how many batches.
          NonFiniteLossError: a loss became NaN or infinite (see `NaNGuard`).
          CheckpointError: the checkpoint in the workdir doesn't fit the model.
          WorkdirInUseError: another process trains in it.
        """
        _check_positive("steps", steps)
        with contextlib.ExitStack() as stack:
            if self.workdir is not None and self.agreement.chief:
                stack.enter_context(locked(self.workdir))
            try:
                return self._train(data, steps, hooks, steps_per_epoch)
            except Aborted:  # Python ends by SIGINT for its own exception only, not a subclass
                raise KeyboardInterrupt from None

    def _train(
        self, data: Data, steps: int, hooks: Iterable[Hook], steps_per_epoch: float | None
    ) -> TrainResult:
        """See `train`."""
        self.hooks = self._defaults.after([*self._own_hooks, *hooks])
        for hook in self.hooks:
            hook.trainer = self
        feed = self._next_feed(data)
        self.train_step.build(feed.element_spec)
        if bundle := os.environ.get(replay.VARIABLE):
            replay.replay_and_exit(self, bundle)
        if not self._resumed:
            self._restore_once()
        self._resume.place(feed, steps)
        if self.step >= steps:
            self.logger.info(f"step {self.step} is already reached, {steps} were asked for.")
            return TrainResult(self.step, {})
        many = self.train_step.accumulate
        size = feed.batch_size and feed.batch_size * many
        epoch = steps_per_epoch or (feed.steps_per_epoch and feed.steps_per_epoch / many)
        self.run = RunInfo(self.step, steps, size, epoch)
        feed.start(self.step)
        guard = any(isinstance(hook, NaNGuard) for hook in self.hooks)
        self._modes.prepare(feed, guard, lambda: steps - self.step)
        self.error = self.stopped = None
        loop = Loop(self, self._modes, feed, self._steps_per_call)
        with running(self):
            try:
                last = loop.run(steps)
            except BaseException as error:
                self.agreement.explain_lost_worker(error)
                self.step = int(self.train_step.counter.numpy())  # a call may not have returned
                feed.reached(self.step)
                raise
        if loop.ends is not None:
            raise loop.ends
        reason = self.stopped if self.step < steps else None
        if reason is not None:
            self.logger.info(f"stopped at step {self.step}: {reason}")
        return TrainResult(self.step, last, reason)

    def restore(self, data: Data) -> int:
        """Restores the newest checkpoint of the workdir without training. Host code.

        Args:
          data: batches as `train` takes them; their structure alone is used, to build the model by
            its training forward.

        Returns:
          The step of the checkpoint.

        Raises:
          CheckpointError: there is none, or it doesn't fit the model.
        """
        where = self.workdir or "the Trainer, which has no workdir"
        nothing = CheckpointError(f"There is no checkpoint in {where}. Train first.")
        # Before the model is built, which would name another trouble.
        if self.checkpoints is None or not self.checkpoints.steps():
            raise nothing
        self.hooks = self.lasting_hooks()
        try:
            self.train_step.build(as_dataset(data, self.strategy).element_spec)
        except Exception as error:
            error.add_note(
                "Trainer.restore(data) builds the model by its training forward: give it batches "
                "as train() takes them, not those of inference."
            )
            raise
        if not self._restore_once():
            raise nothing
        return self.step

    def evaluate(
        self,
        data: Data,
        metrics: Mapping[str, BoundMetric | HostMetric] | None = None,
        *,
        losses: bool = False,
        ema: bool = False,
    ) -> dict[str, float]:
        """Runs `model(batch, training=False)` over `data`, every example once. Host code.

        Args:
          data: a finite data set of batches.
          metrics: `{name: tfloss.metric(keras_metric, arguments)}`, or objects with
            `update(batch, predictions)` and `result()`.
          losses: also give validation losses, `losses/<name>`; no state changes. See
            `tfloss.evaluation.Evaluator.run` for what Dropout and BatchNormalization do.
          ema: evaluate the moving averages of the weights instead (`Trainer(ema=...)`).

        Returns:
          `{name: value}`.
        """
        metrics = dict(metrics or {})
        if not metrics and not losses:
            raise ValueError("evaluate() has nothing to do: give metrics, or losses=True.")
        if not self._resumed and not self._evaluators:
            warn_if_unrestored(self.checkpoints)  # once
        if not self.model.built:
            self.train_step.build(as_dataset(data, self.strategy).element_spec)
        evaluator = self._evaluators.of(metrics, losses, self.train_step.signature())
        self.state().sync_replicas()
        with self.averaged() if ema else contextlib.nullcontext():
            # The first worker's, so that no rounding makes one of them decide otherwise.
            return self.agreement.broadcast(evaluator.run(data, self.step))

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model has the moving averages of its weights: to export them. Host code.

        Raises ValueError if there are none (yet): give `ema` to the Trainer.
        """
        averages = self.train_step.averages
        if averages is None:
            raise ValueError("There are no averages: make the Trainer with ema=0.999, and train.")
        self.state().sync_replicas()
        with averages.swapped_in(self.strategy):
            yield

    # What hooks call

    def log(
        self, step: int, scalars: Mapping[str, float], summaries: Sequence[Summary] = ()
    ) -> None:
        """Gives values to every hook's `on_log`: writers write them, others watch them."""
        with self.stopwatch.during("hooks"):
            for hook in self.hooks:
                if self.runs(hook):
                    hook.on_log(step, scalars, summaries)

    def log_steps(self, logs: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Gives the values of several steps to every hook's `on_log`, one step after the other."""
        with self.stopwatch.during("hooks"):
            for hook in self.hooks:
                if self.runs(hook):
                    for step, scalars in logs:
                        hook.on_log(step, scalars, ())

    def runs(self, hook: Hook) -> bool:
        """Whether a hook is called on this worker: writers are on the first one only."""
        return self.agreement.chief or not hook.chief_only

    def stop(self, reason: str) -> None:
        """Ends training after the current step; `TrainResult.reason` says why."""
        self.stopped = self.stopped or reason

    def save_checkpoint(self) -> Path:
        """Saves the whole state under `workdir/checkpoints` and returns the directory."""
        if self.checkpoints is None:
            raise ValueError("Can't save a checkpoint: the Trainer has no workdir.")
        save = functools.partial(self._resume.save, self._feed)
        return self.agreement.run_on_all("save a checkpoint", save)

    @property
    def writer(self) -> BackgroundWriter | None:
        """What writes checkpoints while training goes on, with `async_checkpoint`."""
        return self._resume.writer

    def state(self) -> TrainerState:
        """All variables that a checkpoint holds."""
        return TrainerState(self.train_step)

    # How

    def lasting_hooks(self) -> list[Hook]:
        """The hooks of all `train` calls: those that the Trainer was made with, and defaults."""
        return self._defaults.after(self._own_hooks)

    def _next_feed(self, data: Data) -> Feed:
        if self._feed is not None and self._feed.data is data:
            return self._feed
        many, keeps = self.train_step.accumulate, self.checkpoints is not None
        feed = Feed(data, self.strategy, many, keeps=keeps, clock=self.clock)
        if self._feed is not None:
            feed.check_same_structure(self._feed)
        self._feed = feed
        return feed

    def _restore_once(self) -> bool:
        """Restores the newest checkpoint, if that wasn't done. Returns whether there was one."""
        step = self._resume.load()
        if step is not None:
            self.step = step
        elif self.seed is not None:
            self.state().seed(self.seed)
        self._resumed = True  # not before: after an error it must be tried again
        return step is not None


def _check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
