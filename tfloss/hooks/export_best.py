"""Exports the model whenever a metric reaches its best value.

    ExportBest("val/accuracy", export={"image": tf.TensorSpec([None, 28, 28, 1])})
    ExportBest("val/losses/total")                 # weights only: best.weights.h5

Put Evaluate, or whatever else logs the metric, before it in the list of hooks.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import keras

from tfloss.checkpoint import describe_nonfinite, nonfinite_variables, skip_replica_sync
from tfloss.common import activity
from tfloss.common.reading import check_directory, check_file
from tfloss.errors import ExportError
from tfloss.evaluation.metrics import Mode, accepts
from tfloss.hooks.described_export import DescribedExport, description_file
from tfloss.hooks.monitored_metric import MonitoredMetric, MonitoringHook
from tfloss.hooks.output_path import output_path
from tfloss.hooks.write_errors import WriteErrors
from tfloss.saved_model import export as saved_model
from tfloss.saved_model.signature import Inputs, parse
from tfloss.summary import Summary

# Writes the model to a path.
ExportFunction: TypeAlias = Callable[[keras.Model, Path], Any]


class ExportBest(MonitoringHook, own=True):
    """Writes `workdir/export` each time the metric improves. Host.

    The export is written to a temporary directory and renamed when it is complete, so readers never
    see an incomplete one. `workdir/export.best.json` says which step was exported, by which value
    of the metric, and holds the checksums of the files. Only an export that nobody else wrote or
    changed is replaced.

    A value that is not finite is no improvement. Weights that are not finite are refused, whatever
    the value. Checkpoints hold the best value and its step, so a resumed run does not replace a
    better export. With `Trainer(log_every_step=True)` only values of the current step count,
    because the weights of earlier ones are gone.

    Args:
      metric: Name of the metric as logged, such as "val/accuracy".
      mode: "max" if higher values are better, "min" if lower ones are. None: "min" for losses
        (`losses/total`, `val/losses/kl`), and what the metric says of itself for a metric that an
        Evaluate hook computes: Keras's own metrics know it.
      export: The `inputs` of `tfloss.export`, or a function `(model, path)` that writes a file or
        directory at `path`. None: the weights are saved as `path/best.weights.h5`.
      path: Path of the export, instead of `workdir/export`.
      ema: Whether to export the moving averages of the weights (`Trainer(ema=...)`).

    Raises:
      ValueError: `mode` is another value. Before the first step: no `mode` was given, and nobody
        knows the direction of the metric.
      ExportError: `export` is neither. Before the first step: there is something else at the path
        than what tfloss wrote there.
    """

    def __init__(
        self,
        metric: str,
        mode: Mode | None = None,
        *,
        export: "ExportFunction | Inputs | None" = None,
        path: str | Path | None = None,
        ema: bool = False,
    ):
        self._ema = ema
        self._metric = MonitoredMetric("ExportBest", metric, mode)
        self._export = export_function(export)
        self._missing: int | None = None  # the step of the best model, if it was not exported
        self._errors = WriteErrors(
            self, "The export of the best model", "The next better model is exported again."
        )
        self._path = path

    @property
    def path(self) -> Path:
        """The path of the export.

        Raises:
          ValueError: There is neither a path nor a workdir.
        """
        return output_path(self, self._path, "export", "ExportBest(..., path=...)")

    def before_train(self) -> None:
        """Finds the mode, and checks the path, before the first evaluation.

        If training goes back behind the exported step, the export is renamed to
        `superseded.export`.

        Raises:
          ValueError: Nobody knows the mode, or there is no path.
          WorkdirError: Nothing can be written at the path.
          ExportError: Somebody else wrote what is there.
        """
        if not accepts(self._export, 2):
            raise TypeError("ExportBest(export=...) must be a function (model, path).")
        self._metric.start(self.trainer.hooks)
        self._missing = None
        self.state = self._metric.restored(self.state, self.trainer.logger)
        agreement = self.trainer.agreement
        check = self._check if agreement.chief else list[Any]
        agreement.run_on_all("check the path of ExportBest", check)

    def on_log(self, step: int, scalars: Mapping[str, float], summaries: Sequence[Summary]) -> None:
        """Exports the model if the metric has improved.

        Raises:
          ExportError: A variable of the model is not finite, or somebody else has written to the
            path since. The earlier export is unchanged.
        """
        value = self._metric.value(step, scalars)
        if value is None or not self._metric.is_improvement(value, self.state.get("best")):
            return
        if step != self.trainer.step:
            return
        found = {**self._metric.identity(), "value": value, "step": step}
        agreement = self.trainer.agreement
        if agreement.workers > 1:
            self.trainer.state.sync_replicas()
        with self.trainer.averaged() if self._ema else contextlib.nullcontext():
            if bad := nonfinite_variables(self.trainer.model):
                raise ExportError(
                    f"ExportBest: not exporting the model of step {step}: "
                    f"{describe_nonfinite(bad)} The earlier export is unchanged."
                )
            alone = agreement.workers == 1
            written = True
            if agreement.chief:
                with contextlib.nullcontext() if alone else skip_replica_sync():
                    written = self._errors.survive(lambda: self._write(found))
            if agreement.agree([not written])[0][0]:  # all workers keep the same best value
                self._missing = step
                return
        self._missing = None
        best = "highest" if self._metric.mode == "max" else "lowest"
        self.trainer.logger.info(
            f"step {step} has the {best} {self._metric.name} so far, {value:.6g}: exported to "
            f"{self.path}"
        )
        self.state = {**self._metric.identity(), "best": value, "step": step}

    def dry_run(self, directory: Path) -> Sequence[str]:
        """Exports the model into the directory.

        Raises:
          ValueError: Nobody knows the mode.
        """
        self._metric.start(self.trainer.hooks)
        with self.trainer.averaged() if self._ema else contextlib.nullcontext():
            self._export(self.trainer.model, directory / "export")
        written = [one for one in directory.rglob("*") if one.is_file()]
        size = sum(one.stat().st_size for one in written)
        return [f"The model was exported, and deleted again: {len(written)} files, {size:,} bytes"]

    def after_train(self) -> None:
        """Warns if the metric was never logged, or the best model could not be exported."""
        self._metric.warn_if_never_logged(self.trainer.error)
        if self._missing is not None and self.trainer.agreement.chief:
            warnings.warn(
                f"The best model, of step {self._missing}, could not be exported to {self.path}. "
                "What is there is an earlier one.",
                stacklevel=2,
            )

    def _check(self) -> None:
        check_directory(self.path if self.path.is_dir() else self.path.parent)
        check_file(description_file(self.path), write=False)
        for path in [self.path, *self.path.rglob("*")]:
            if not path.is_symlink() and not path.is_dir():
                check_file(path, write=False)  # its checksum is computed
        export, run = DescribedExport(self.path), self.trainer.run
        export.check()
        if run.rewound:
            export.keep_later(run.start)

    @activity.during("exporting the best model")
    def _write(self, found: dict[str, Any]) -> None:
        write = functools.partial(self._export, self.trainer.model)
        DescribedExport(self.path).replace(write, found)


def export_function(export: "ExportFunction | Inputs | None") -> ExportFunction:
    """Returns the function that exports a model.

    Args:
      export: See `ExportBest`.

    Raises:
      ExportError: `export` is neither a function nor the inputs of a SavedModel.
    """
    if export is None:
        return _save_weights
    if callable(export):
        return export
    parse("serving_default", export)  # refuses what can't be a signature before training
    return lambda model, path: saved_model.export(model, path, export)


def _save_weights(model: keras.Model, path: Path) -> None:
    path.mkdir()
    model.save_weights(path / "best.weights.h5")
