"""Calls Keras callbacks during training, as `fit` does.

    KerasCallbacks([keras.callbacks.ReduceLROnPlateau("val_loss", patience=3)])

They get `loss`, the model's losses and scalars by name, and the results of Evaluate hooks as
`val_loss` and `val_accuracy`. A resumed run continues their counts.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras

from tfloss.hooks.callback_checks import (
    check_callback,
    check_rate,
    has_batch_methods,
    only_writes,
)
from tfloss.hooks.callback_files import continue_files
from tfloss.hooks.callback_logs import (
    check_monitor,
    epoch_logs,
    known_monitor_mode,
    result_logs,
)
from tfloss.hooks.callback_model import callback_attributes
from tfloss.hooks.callback_state import CallbackState
from tfloss.hooks.every import Every, started_copy
from tfloss.hooks.logged_names import LoggedNames
from tfloss.hooks.monitored_metric import MonitoringHook
from tfloss.hooks.trainer_protocol import MeansProtocol
from tfloss.summary import Summary


class KerasCallbacks(MonitoringHook, own=True):
    """Calls Keras callbacks at the beginning and the end of training, epochs and batches. Host.

    Bare callbacks in a list of hooks are wrapped by this class. The logs of an epoch are means over
    its steps: `loss` for the total, and each loss and scalar summary under its own name. The
    results of Evaluate hooks follow as `val_loss`, `val_<loss>` and `val_<metric>`, wherever the
    hooks stand. During training, `self.model` is the trainer's model. It has the trainer's
    optimizer, and `stop_training`, which ends training after the step. With groups,
    `self.model.optimizer.optimizers` lists the optimizers. An epoch that a call of `train` doesn't
    complete has no end.

    A batch is a step of the trainer. If a callback has a method for batches, each step is a call of
    its own, which is slower.

    What a callback counts in its attributes survives a restart and the end of a call of `train`, if
    a checkpoint can hold it. `CSVLogger` and `TensorBoard` continue their files, and run on the
    first worker only. Methods for tests and predictions are never called.

    Args:
      callbacks: The callbacks, in the order in which they are called.
      epoch: What counts as an epoch, in any unit but seconds. By default a pass over the data.

    Raises:
      TypeError: A callback does what a hook of tfloss does, such as ModelCheckpoint and
        BackupAndRestore. The message names the hook.
      ValueError: `epoch` is not such a trigger. Before the first step: the length of an epoch is
        unknown, a callback sets a learning rate that follows a schedule, or nothing logs the metric
        that a callback monitors, or nobody knows its direction.
    """

    async_logs = True
    uses_results = True

    def __init__(
        self,
        callbacks: keras.callbacks.Callback | Iterable[keras.callbacks.Callback],
        *,
        epoch: Every | None = None,
    ):
        one = isinstance(callbacks, keras.callbacks.Callback)
        self.callbacks: list[Any] = [callbacks] if one else list(callbacks)
        for callback in self.callbacks:
            check_callback(callback)
        self._epoch: Any = Every(epochs=1) if epoch is None else epoch
        if not isinstance(self._epoch, Every) or self._epoch.kind == "seconds":
            raise ValueError(
                f"KerasCallbacks(epoch={epoch!r}): give a number of steps, such as "
                "Every(steps=500), or Every(epochs=1)."
            )
        self._batches = any(has_batch_methods(one) for one in self.callbacks)
        self.every = Every(steps=1) if self._batches else self._epoch
        self._active: list[Any] = []
        self._states: dict[int, CallbackState] = {}  # by position
        self._attributes = contextlib.ExitStack()

    def before_train(self) -> None:
        """Starts the callbacks, with what they counted before.

        Raises:
          ValueError: See the class.
        """
        trainer, start = self.trainer, self.trainer.run.start
        optimizers = trainer.train_step.optimizers
        self._epoch, self._stopped = started_copy(self._epoch, trainer.run), False
        self._means: MeansProtocol = trainer.window.running_means()
        self._means.restore(self.state.get("means"), start)
        self._results: dict[str, float] = dict(self.state.get("results", {}))
        self._logs: dict[str, float] = {}
        chief = trainer.agreement.chief
        self._active = [one for one in self.callbacks if chief or not only_writes(one)]
        for callback in self._active:
            check_rate(callback, optimizers)
        self._find_modes(trainer.hooks, ())
        self._attributes.enter_context(callback_attributes(trainer.model, optimizers))
        self._start_callbacks(start)
        if self._stopped_before():
            return
        if self.state.get("epoch") != self._epoch.progress(start)[0]:
            self._begin_epoch(start)
        self._begin_batch(start)

    def check_names(self, names: LoggedNames) -> None:
        """Refuses a callback of Keras that monitors what no epoch logs."""
        for callback in self.callbacks:
            check_monitor(callback, names)

    def on_log(self, step: int, scalars: Mapping[str, float], summaries: Sequence[Summary]) -> None:
        """Keeps the results of evaluations for the end of the epoch."""
        if "losses/total" not in scalars:  # not a log of the steps, whose means are taken instead
            self._results |= result_logs(scalars, self.trainer.hooks)

    def after_step(self, step: int) -> None:
        """Ends and begins batches and epochs."""
        ends = self._epoch.due(step)
        if self._batches:
            batch = self._epoch.progress(step - 1)[1]
            self._call("on_train_batch_end", batch, logs=epoch_logs(self._means.values()))
        if ends or self._stopped:
            self._end_epoch(step)
        if self._stopped or step >= self.trainer.run.steps:
            return
        if ends:
            self._begin_epoch(step)
        self._begin_batch(step)

    def before_save(self, step: int) -> None:
        """Puts what the callbacks count into the state."""
        self.state["means"] = self._means.state()
        self.state["results"] = dict(self._results)
        saved = self.state.setdefault("callbacks", {})
        for position, state in self._states.items():
            saved[str(position)] = state.save()
            state.warn_of_the_rest()

    def after_train(self) -> None:
        """Ends the callbacks. After an error they are not called, as in `fit`."""
        if self.trainer.error is None and self._active:
            self.trainer.state.sync_replicas()  # callbacks see the weights that are evaluated
            self._call("on_train_end", logs=self._logs)
            self.state["ended"] = self.trainer.step  # they may have changed the weights: save them
        self._attributes.close()

    def _start_callbacks(self, start: int) -> None:
        """Calls `on_train_begin`, and restores what the callbacks counted before."""
        epochs, length = self._epoch.progress(start)[0], self.trainer.run.steps_per_epoch
        total = self._epoch.progress(self.trainer.run.steps)[0]
        steps = int(length) if length is not None and length % 1 == 0 else None
        for callback in self._active:
            if start:
                continue_files(callback, epochs, start, keep=self.trainer.run.rewound)
            callback.set_model(self.trainer.model)
            callback.set_params({"verbose": 1, "epochs": total, "steps": steps})
        self._call("on_train_begin")
        saved = self.state.get("callbacks", {})
        for position, callback in enumerate(self.callbacks):
            if callback in self._active:
                state = self._states.setdefault(position, CallbackState(callback))
                state.restore(saved.get(str(position), {}))

    def _stopped_before(self) -> bool:
        """Stops a run that an EarlyStopping has already stopped, unless its patience was raised."""
        for one in self._active:
            early = isinstance(one, keras.callbacks.EarlyStopping)
            if early and one.stopped_epoch and one.wait >= one.patience:
                self._active = []
                self.trainer.stop(
                    f"the Keras callback EarlyStopping stopped it in epoch {one.stopped_epoch + 1}"
                )
                return True
        return False

    def _begin_epoch(self, step: int) -> None:
        self.state["epoch"] = self._epoch.progress(step)[0]
        self._call("on_epoch_begin", self.state["epoch"])

    def _end_epoch(self, step: int) -> None:
        self.trainer.state.sync_replicas()  # callbacks see the weights that are evaluated
        means = self._means.values()
        self._find_modes((), means)
        self._logs = epoch_logs(means) | self._results
        self._call("on_epoch_end", self.state["epoch"], logs=dict(self._logs))
        self._means.restart(step)
        self._results = {}

    def _begin_batch(self, step: int) -> None:
        if self._batches and not self._stopped:
            self._call("on_train_batch_begin", self._epoch.progress(step)[1])

    def _find_modes(self, hooks: Sequence[Any], losses: Iterable[str]) -> None:
        """Says to callbacks with mode "auto" which values are better, where Keras can't know it."""
        for callback in self._active:
            if mode := known_monitor_mode(callback, hooks, losses):
                callback.mode = mode

    def _call(self, method: str, *args: Any, logs: dict[str, float] | None = None) -> None:
        """Calls a method of all callbacks, which share the logs, as in `fit`."""
        logs = {} if logs is None else logs
        for callback in self._active:
            getattr(callback, method)(*args, logs)
            if vars(self.trainer.model).get("stop_training") and not self._stopped:
                self._stopped = True
                kind, epoch = type(callback).__name__, self.state.get("epoch", 0) + 1
                self.trainer.stop(f"the Keras callback {kind} stopped it in epoch {epoch}")
