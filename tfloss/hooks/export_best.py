"""Exports the model whenever a watched metric is at its best.

    ExportBest("val/accuracy", export=lambda model, path: tfloss.export(model, path, inputs))
    ExportBest("val/losses/total")                 # weights only: best.weights.h5

Put Evaluate, or whatever logs the metric, before it in the list of hooks.
"""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tfloss.checkpoint import skip_replica_sync
from tfloss.hooks._watch import Watch
from tfloss.hooks.base import Hook


class ExportBest(Hook):
    """Writes `workdir/export` each time the metric improves. Host.

    The export is written beside its place and moved there when it is whole, so a reader
    never sees half of one. A value that is not finite is no improvement. The state is the
    best value and its step: a resumed run does not replace a better export.

    Args:
      metric: as it is logged, "val/accuracy".
      mode: "max" if more is better, "min" if less is. By default "min" for what is logged
        under `losses/` (`losses/total`, `val/losses/kl`), else "max".
      export: `export(model, path)` writes a file or directory at `path`; the default saves
        the weights as `path/best.weights.h5`.
      path: instead of `workdir/export`.
      ema: export the moving averages of the weights (`Trainer(ema=...)`).
    """

    def __init__(
        self,
        metric: str,
        mode: str | None = None,
        *,
        export: Callable[[Any, Path], Any] | None = None,
        path: str | Path | None = None,
        ema: bool = False,
    ):
        self._ema = ema
        self._watch = Watch("ExportBest", metric, mode)
        self._export = export or _save_weights
        self._given = path

    @property
    def path(self) -> Path:
        """Where the export lies. Raises ValueError without a workdir."""
        if self._given is not None:
            return Path(self._given)
        if self.trainer.workdir is None:
            raise ValueError(
                "ExportBest has nowhere to write: give the Trainer a workdir, or "
                "ExportBest(..., path=...)."
            )
        return Path(self.trainer.workdir) / "export"

    def before_train(self) -> None:
        self._watch.start()
        _ = self.path  # fails now rather than at the first evaluation

    def on_log(self, step, scalars, summaries) -> None:
        value = self._watch.value(step, scalars)
        if value is None or not self._watch.better(value, self.state.get("best")):
            return
        agreement = self.trainer.agreement
        if agreement.workers > 1:
            self.trainer.state.sync_replicas()
        with self.trainer.averaged() if self._ema else contextlib.nullcontext():
            if agreement.workers == 1:
                self._write()
            elif agreement.chief:
                with skip_replica_sync():
                    self._write()
        self.state = {"best": value, "step": step}

    def _write(self) -> None:
        partial = self.path.with_name(self.path.name + ".partial")
        _remove(partial)
        partial.parent.mkdir(parents=True, exist_ok=True)
        self._export(self.trainer.model, partial)
        if not partial.exists():
            raise ValueError(
                f"ExportBest: export(model, path) wrote nothing at its path, {partial}. It has "
                "to write there; the result is then moved to its final place."
            )
        _replace(partial, self.path)

    def after_train(self) -> None:
        self._watch.finish(self.trainer.error)


def _save_weights(model: Any, path: Path) -> None:
    path.mkdir()
    model.save_weights(path / "best.weights.h5")


def _replace(source: Path, target: Path) -> None:
    """Moves source to target; a directory can't be replaced in one call, so it steps aside."""
    old = target.with_name(target.name + ".old")
    _remove(old)
    if target.exists():
        target.rename(old)
    source.rename(target)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
