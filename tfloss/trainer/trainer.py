"""The trainer: a model that reports its losses, an optimizer, data, and hooks beside them.

    trainer = tfloss.Trainer(model, keras.optimizers.Adam(1e-3), workdir="runs/digits")
    result = trainer.train(dataset, steps=2_000)
    metrics = trainer.evaluate(test_set, {"accuracy": accuracy})

`train` makes the variables, resumes if there is a checkpoint, and runs the loop. Host code.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import keras
import tensorflow as tf

from tfloss.checkpoint import CheckpointDirectory
from tfloss.data.adapted import adapted
from tfloss.data.distributed import Data
from tfloss.data.feed import Feed
from tfloss.distribute.agreement import Agreement
from tfloss.distribute.strategy import check_strategy
from tfloss.engine.mode_runner import ModeRunner
from tfloss.errors import Aborted
from tfloss.evaluation.evaluator_cache import EvaluatorCache
from tfloss.evaluation.metrics import BoundMetric, HostMetric, check_metrics, own_metrics
from tfloss.hooks import Hook
from tfloss.hooks.nan_guard import guarded
from tfloss.hooks.progress import shown
from tfloss.hooks.run_info import RunInfo
from tfloss.inspect.determinism import enable_op_determinism
from tfloss.inspect.traceback_filtering import filtered_tracebacks
from tfloss.step.random_states import process_variables
from tfloss.step.step_options import StepOptions
from tfloss.step.trace_options import Jit, Mode
from tfloss.step.train_step import TrainStep
from tfloss.summary import Summary
from tfloss.trainer.arguments import (
    OtherNames,
    build,
    build_by_training_forward,
    check_positive,
    check_trainable,
    checked_hooks,
    made_step,
    new_feed,
    optimizer_of,
    run_info,
)
from tfloss.trainer.checkpointed_variables import CheckpointedVariables, warn_if_unrestored
from tfloss.trainer.commands import obey_command
from tfloss.trainer.default_hooks import DefaultHooks
from tfloss.trainer.epochs import Epochs
from tfloss.trainer.hook_list import HookList, check_monitored_names
from tfloss.trainer.inspection import inspect
from tfloss.trainer.loop import Loop
from tfloss.trainer.result import TrainResult
from tfloss.trainer.run_checkpoint import RunCheckpoint
from tfloss.trainer.run_state import RunState
from tfloss.trainer.workdir import opened
from tfloss.trainer.worker_comparison import compare_workers, trainer_settings


class Trainer(OtherNames):
    """Trains a Keras model that reports its own losses.

    Args:
      model: A `keras.Model`. `model(batch, training=True)` reports losses (see
        `tfloss.forward.losses`), `model(batch, training=False)` returns predictions. Create it and
        the optimizer inside `with strategy.scope()`. None if `train_step` is an instance.
      optimizer: A Keras optimizer, or groups: `{name: (optimizer, variables)}`; see `Group`. None
        if `train_step` is an instance, or to restore and evaluate only.
      strategy: A `tf.distribute.Strategy`; by default the current one.
      workdir: The directory for checkpoints, curves and metrics. None: nothing is written.
      hooks: What happens beside training, in this order. The default hooks (`Progress`,
        `NaNGuard` and, with a workdir, `TensorBoard`, `MetricsFile` and `SaveCheckpoint`
        every ten minutes; on several workers, `Watchdog`) are added, except where one of the same
        class is given.
      default_hooks: Whether to add the default hooks.
      seed: Seed of Python, NumPy and TensorFlow, set now, and of the seed generators of the model's
        layers (Dropout, ...), set when training starts without a checkpoint. Initial weights
        depend on seeds drawn when layers were created: call `keras.utils.set_random_seed` before.
      steps_per_call: The most steps in one call of the device loop; "auto": as many as take about
        a second. It never changes the result, and hooks run at exactly their steps.
      log_every: Steps between logs. Losses are logged as means over these steps, summaries as those
        of the last step. The last step of a run is logged too.
      log_every_step: Whether to log the losses and scalar summaries of every single step. They are
        still written every `log_every` steps, together.
      jit: False runs each step as a TensorFlow graph. True compiles forward and backward pass of
        each step with XLA. "loop" compiles many steps and their updates as one program (on one
        replica only). "auto" measures on the first steps which is the fastest, if the run is long
        enough for it, logs the choice, and keeps it in the workdir. The results are the same up
        to rounding.
      train_step: A subclass of `TrainStep`, for another algorithm. Or, if your class has more
        arguments, an instance that you made with model, optimizer and step options.
      async_checkpoint: Whether to write checkpoints while training continues. Training pauses while
        the values are copied to the host's memory; the copy is as large as all variables.
      deterministic: Whether each run must give the same bits, resumed or not. Turns on TensorFlow's
        op determinism (for the whole process), refuses a step with state that no checkpoint can
        hold, and lets no clock choose the mode. Needs a seed. It costs speed.
      clock: A function that returns the time in seconds; injectable for tests.
      **step_options: Options of the step; see `TrainStep`.

    Attributes:
      model, optimizer, strategy, workdir, clock: The arguments.
      train_step: The step that is trained.
      state: The variables that checkpoints hold.
      checkpoints: The directory of the checkpoints, or None without a workdir.
      agreement: What several workers decide together.
      logger: The logger for messages, silent on all workers but the first.
      hooks: The hooks of the current call of `train`, in order.
      stopwatch: Where the time of the current call goes.
      window: The steps that are not logged yet; `bool(window)` is False if there are none.
      writer: What writes checkpoints in the background, or None.

    Raises:
      ModelError: Model or optimizer was created outside of the strategy's scope.
      OSError: The workdir can't be written to.
      ValueError, TypeError: An argument makes no sense. The message names it.
    """

    @filtered_tracebacks
    def __init__(
        self,
        model: keras.Model | None = None,
        optimizer: Any = None,
        *,
        strategy: tf.distribute.Strategy | None = None,
        workdir: str | Path | None = None,
        hooks: Iterable[Hook] = (),
        default_hooks: bool = True,
        seed: int | None = None,
        steps_per_call: int | str = "auto",
        log_every: int = 100,
        log_every_step: bool = False,
        jit: Jit = "auto",
        train_step: type[TrainStep] | TrainStep = TrainStep,
        async_checkpoint: bool = False,
        deterministic: bool = False,
        clock: Callable[[], float] = time.monotonic,
        **step_options: Unpack[StepOptions],
    ):
        self._settings = trainer_settings(locals())
        check_positive("log_every", log_every)
        if steps_per_call != "auto":
            check_positive("steps_per_call", steps_per_call)
        if strategy is None and isinstance(train_step, TrainStep):
            strategy = train_step.strategy
        self.strategy = strategy or tf.distribute.get_strategy()
        check_strategy(self.strategy)
        self.agreement = Agreement(self.strategy)
        self.clock, self._steps_per_call = clock, steps_per_call
        if seed is not None:
            keras.utils.set_random_seed(seed)
        if deterministic:
            enable_op_determinism(seed)
        self._seed, self._deterministic = seed, deterministic
        with self.strategy.scope():
            self.train_step = made_step(train_step, model, optimizer, step_options, Trainer)
        self.workdir = opened(workdir, writes=bool(self.train_step.groups))
        self.checkpoints = self.workdir and CheckpointDirectory(self.workdir / "checkpoints")
        self.model = self.train_step.model
        self.optimizer = optimizer_of(self.train_step) if optimizer is None else optimizer
        self.state = CheckpointedVariables(self.train_step)
        self._run = RunState(
            self.train_step.counter,
            self.agreement,
            self.workdir,
            log_every=log_every,
            log_every_step=log_every_step,
            clock=clock,
        )
        self.logger, self.window = self._run.logger, self._run.window
        self.stopwatch = self._run.stopwatch
        self._modes = ModeRunner(
            jit,
            self.train_step,
            log_every_step=log_every_step,
            workdir=self.workdir,
            agreement=self.agreement,
            logger=self.logger,
            deterministic=deterministic,
            saved=lambda: [*self.state.variables().values(), *process_variables(self.strategy)],
            on_trace=lambda tags: check_monitored_names(self.hooks, tags, self.train_step),
            clock=clock,
        )
        self._feed: Feed | None = None
        self._epochs = Epochs(self.train_step, seed)
        self._checkpoint = RunCheckpoint(
            self._run, self.state, self.checkpoints, background=async_checkpoint
        )
        self.writer = self._checkpoint.writer
        self._own_hooks = checked_hooks(hooks)
        self._defaults = DefaultHooks(default_hooks, workdir is not None, self.agreement.workers)
        self._use(self._own_hooks)
        self._evaluators = EvaluatorCache(self.train_step)

    @property
    def step(self) -> int:
        """Completed updates."""
        return self._run.step

    @property
    def run(self) -> RunInfo:
        """What hooks can know about the current call of `train`."""
        return self._run.info

    @property
    def error(self) -> BaseException | None:
        """The error that the current call of `train` ended with, or None."""
        return self._run.error

    @property
    def mode(self) -> Mode | None:
        """The mode that steps run in: "graph", "step" or "loop".

        None before the first call of `train`, and while `jit="auto"` still measures.
        """
        return self._modes.mode

    inspect = inspect

    @filtered_tracebacks
    def train(
        self,
        data: Data,
        steps: int | None = None,
        *,
        epochs: float | None = None,
        batch_size: int | None = None,
        hooks: Iterable[Hook] = (),
        steps_per_epoch: float | None = None,
    ) -> TrainResult:
        """Trains until `steps` updates, or `epochs`, are completed in all. Host code.

        The first call resumes from the newest valid checkpoint in the workdir, in the data too. A
        second call continues where the first ended, in the data too if they are the same object.

        Args:
          data: A `tf.data.Dataset` of global batches, a `tfloss.data.Source`, a function of a
            `tf.distribute.InputContext`, or what `fit` takes (see `tfloss.data.adapted`).
          steps: The global step to reach.
          epochs: Instead of `steps`: the passes over finite data to complete in all.
          batch_size: The examples in a global batch, for arrays and tables.
          hooks: More hooks, for this call.
          steps_per_epoch: Steps in an epoch, where the data set repeats or its length is unknown.

        Returns:
          The step, the losses of the last step, and why training stopped early.

        Raises:
          LossError, SummaryError, ModelError, DataError: Bad input, or data that end too early.
          NonFiniteLossError: A loss became NaN or infinite (see `NaNGuard`).
          CheckpointError: The checkpoint in the workdir doesn't fit, or one can't be written.
          WorkdirError, WorkdirInUseError: The workdir is unusable, gone, or another trainer's.
          WorkerError: Another worker differs, has failed, or is gone. The message names it.
          Preempted: SIGTERM came, or a time limit was reached; a checkpoint was saved.
          KeyboardInterrupt: Ctrl-C came; with a workdir, a checkpoint was saved.
        """
        check_trainable(self.train_step)
        plan = self._epochs.plan(data, steps, epochs, steps_per_epoch, batch_size)
        data, steps, steps_per_epoch = plan
        with self.agreement.call(), self._run.lock.training():
            self._use(self._defaults.after([*self._own_hooks, *checked_hooks(hooks)]))
            try:
                with shown(self.hooks):
                    return self._train(data, steps, steps_per_epoch)
            except Aborted:  # Python ends by SIGINT for its own exception only, not a subclass
                raise KeyboardInterrupt from None
            finally:
                self._checkpoint.end_call()

    def _train(self, data: Data, steps: int, steps_per_epoch: float | None) -> TrainResult:
        """Trains, with the workdir locked."""
        run = self._run
        feed = self._next_feed(data)
        compare_workers(self, feed.reader, {**self._settings, "steps": steps})
        build(self.train_step, feed.reader.dataset)
        obey_command(self, data)
        if not self._checkpoint.loaded:
            self._checkpoint.load(self._seed)
        if run.step < steps and (self.checkpoints is not None or self._deterministic):
            feed.warn(self._deterministic)
        self._checkpoint.resume_call(steps, self._hook_list, feed)
        if run.step >= steps:
            self.logger.info(f"step {run.step} is already reached, {steps} were asked for.")
            return TrainResult(run.step, {})
        feed.catch_up(self.logger)
        run.begin(run_info(run, steps, feed, self.train_step.accumulate, steps_per_epoch))
        self._modes.prepare(feed.reader, guarded(self.hooks), lambda: steps - run.step)
        loop = Loop(
            run,
            self._hook_list,
            self._modes,
            feed,
            steps_per_call=self._steps_per_call,
            saves=self.checkpoints is not None,
            on_first_step=lambda: self._checkpoint.after_first_step(self._hook_list),
        )
        with self._hook_list.running(self._checkpoint.wait):
            try:
                losses = loop.run(steps)
            except BaseException as error:
                loop.read_counter()
                raise self.agreement.report(error)  # noqa: B904 - often the same error
        self.agreement.gather("the end of training", run.step)
        if loop.ending is not None:
            raise loop.ending
        reason = run.stop_reason if run.step < steps else None
        if reason is not None:
            self.logger.info(f"stopped at step {run.step}: {reason}")
        return TrainResult(run.step, losses, reason, self._hook_list.curves.points)

    @filtered_tracebacks
    def restore(self, data: Data, *, step: int | None = None, best: str | None = None) -> int:
        """Restores a checkpoint without training, maybe beside a trainer of the workdir. Host code.

        Without an optimizer, the model is restored, and the averages of its weights if the run kept
        some. Training after an older checkpoint renames the later ones and keeps their logs.

        Args:
          data: Batches as `train` takes them, whose structure is used to build the model.
          step: The step of the checkpoint. None: that of `best`, or the newest valid one.
          best: A metric as logged, "val/accuracy": the checkpoint with its best value.

        Returns:
          The step of the checkpoint.

        Raises:
          CheckpointError: There is no such checkpoint, or it doesn't fit the model.
          CheckpointDeletedError: The checkpoint of `step` doesn't exist, or was deleted.
        """
        restore = self._checkpoint.select(step, best, self._own_hooks)
        self._use(self._defaults.after(self._own_hooks))
        build_by_training_forward(self.train_step, data, "restore")
        restore()
        self._feed = None
        return self._run.step

    @filtered_tracebacks
    def evaluate(
        self,
        data: Data,
        metrics: Mapping[str, BoundMetric | HostMetric] | None = None,
        *,
        losses: bool = False,
        ema: bool = False,
        batch_size: int | None = None,
    ) -> dict[str, float]:
        """Evaluates the model on `data`, every example once. Host code.

        The inference forward runs only for metrics that use predictions, the training forward only
        for validation losses, or to build a model that isn't built.

        Args:
          data: A finite data set of batches, or what `fit` takes, in its order.
          metrics: `{name: tfloss.metric(keras_metric, arguments)}`, or objects with
            `update(batch, predictions)`, `result()` and `reset()`. None: those that the model owns.
          losses: Whether to return validation losses too, as `losses/<name>`: see `Evaluator.run`.
          ema: Whether to evaluate the moving averages of the weights (`Trainer(ema=...)`).
          batch_size: The examples in a batch, for arrays and tables.

        Returns:
          `{name: value}`.

        Raises:
          TypeError: Something is not a metric, or can't be reset.
          ValueError: There is nothing to do, or there are no averages.
          MetricError: A metric failed, or does not count every example once.
        """
        metrics = own_metrics(self.model) if metrics is None else check_metrics(metrics)
        if not metrics and not losses:
            raise ValueError("evaluate() has nothing to do: give metrics, or losses=True.")
        data = adapted(data, batch_size)
        if not self._checkpoint.loaded and not self._evaluators:
            warn_if_unrestored(self.checkpoints, self.model)  # once
        if not self.model.built:
            build_by_training_forward(self.train_step, data, "evaluate")
        evaluator = self._evaluators.get(metrics, losses, self.train_step.signature())
        self.state.sync_replicas()
        with self.averaged() if ema else contextlib.nullcontext():
            # All workers use the first one's values, so that rounding makes none decide otherwise.
            return self.agreement.broadcast(evaluator.run(data, self._run.step))

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside the `with` the model has the moving averages of its weights. Host code.

        Use it to export them. A warning names the averages that are not finite.

        Raises:
          ValueError: There are no averages (yet): give `ema` to the Trainer.
        """
        averages = self.train_step.averages
        if averages is None:
            raise ValueError("There are no averages: make the Trainer with ema=0.999, and train.")
        self.state.sync_replicas()
        with averages.swapped_in(self.strategy):
            yield

    def log(
        self, step: int, scalars: Mapping[str, float], summaries: Sequence[Summary] = ()
    ) -> None:
        """Gives values to every hook's `on_log`: writers write them, others watch them. Host code.

        Args:
          step: The step that the values belong to.
          scalars: `{tag: value}`.
          summaries: Other summaries.
        """
        self._hook_list.log(step, scalars, summaries)

    def stop(self, reason: str) -> None:
        """Ends training after this step; the first `reason` is `TrainResult.reason`. Host code."""
        self._run.stop(reason)

    def save_checkpoint(self) -> Path:
        """Saves all state under `workdir/checkpoints`. Host code, on all workers.

        Returns:
          The directory of the checkpoint.

        Raises:
          ValueError: The trainer has no workdir.
          CheckpointWriteError: The checkpoint can't be written.
        """
        if self.checkpoints is None:
            raise ValueError("Can't save a checkpoint: the Trainer has no workdir.")

        def save() -> Path:
            position = None if self._feed is None else self._feed.state()
            return self._checkpoint.save(self._hook_list, position)

        return self.agreement.run_on_all("save a checkpoint", save)

    def _use(self, hooks: Sequence[Hook]) -> None:
        """Takes these hooks from now on."""
        self.hooks = list(hooks)
        self._hook_list = HookList(self.hooks, self._run, self)

    def _next_feed(self, data: Data) -> Feed:
        """The feed of some data: the last one's, at its position, if they are the same object."""
        if self._feed is not None and self._feed.reader.data is data:
            return self._feed
        keeps = self.checkpoints is not None
        feed = new_feed(data, self.strategy, self.train_step, self._run, keeps=keeps)
        if self._feed is not None:
            feed.reader.check_same_structure(self._feed.reader)
        self._feed = feed
        return feed
