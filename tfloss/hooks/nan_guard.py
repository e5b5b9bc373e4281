"""Stops training before an update that is not finite, and saves the evidence.

    NaNGuard()      # one of the trainer's default hooks

The check of losses and gradients is part of the training step (`tfloss.engine.finite_guard`). So it
runs at every step, also inside a call of many steps, and a bad update is never applied. This hook
enables the check. When it fails, the hook writes `workdir/nonfinite/step_00000137/`: the batch, the
state before the step and the command. `tfloss replay WORKDIR` runs that step again.
"""

import json
import os
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfloss.checkpoint import describe_nonfinite, nonfinite_variables
from tfloss.common.reading import check_directory
from tfloss.common.replacement import replace_file, replacement, set_aside
from tfloss.data import batches
from tfloss.data.batch_layout import tensor_name
from tfloss.errors import NonFiniteLossError
from tfloss.hooks.base import Hook
from tfloss.hooks.write_errors import is_write_error
from tfloss.step.trace_options import Guarded


class NaNGuard(Hook, own=True):
    """Makes `Trainer.train` raise `NonFiniteLossError`, with the step and what is at fault. Host.

    If a loss or a gradient is NaN or infinite, the whole step makes no update, and weights, slots
    and statistics are those before it. Where a loss scale or `skip_nonfinite` skips such updates,
    training stops only when they can't help: the scale is at its minimum, or too many updates in a
    row were skipped. A gradient counts as not finite, too, if the sum of its elements, or with
    `Trainer(clip_norm=...)` its norm, overflows float32.

    No checkpoint is saved after the error. Without a workdir nothing is written. At the end of
    training the hook warns if variables of the model are not finite.

    Args:
      gradients: Whether gradients are checked, and not only losses. The check of the gradients
        is one sum for each shape of variable and one for each group
        (`python benchmarks/guard.py mlp small cnn transformer` measures it). Without it, a bad
        gradient of a finite loss makes weights NaN, and training stops at the next loss that is
        NaN, if there is one.
    """

    def __init__(self, *, gradients: bool = True):
        self.gradients = gradients

    def before_train(self) -> None:
        """Checks that the evidence could be saved.

        Raises:
          WorkdirError: `workdir/nonfinite` can't be written to.
        """
        if self.trainer.workdir is not None and self.trainer.agreement.chief:
            check_directory(self.trainer.workdir / "nonfinite")

    def after_train(self) -> None:
        """Saves batch, state and command after a `NonFiniteLossError`."""
        error = self.trainer.error
        workdir = self.trainer.workdir
        if error is None:
            bad = nonfinite_variables(self.trainer.model)
            if bad:
                warnings.warn(
                    f"Training ended at step {self.trainer.step} with {describe_nonfinite(bad)}",
                    stacklevel=2,
                )
        if not isinstance(error, NonFiniteLossError):
            return
        missing = _nonfinite_inputs(error.batch)
        if missing:
            error.add_note(
                f"The batch itself has NaN or infinite values: {', '.join(missing)}. Replace or "
                "mask missing values."
            )
        if workdir is None:
            error.add_note(
                "To find the first value that is not finite, give the Trainer a workdir, which "
                "keeps the batch, and train again."
            )
        else:
            path = workdir / "nonfinite" / f"step_{error.step:08d}"
            try:
                self._save(path, error)
            except Exception as failure:
                if not is_write_error(failure):
                    raise
                error.add_note(f"Its batch could not be saved in {path}: {failure}")
                return
            error.add_note(
                f"Its batch is in {path}. To find the first value that is not finite: "
                f"tfloss replay {workdir}"
            )

    def _save(self, path: Path, error: NonFiniteLossError) -> None:
        path.mkdir(parents=True, exist_ok=True)
        agreement = self.trainer.agreement
        first = agreement.index * len(error.batch)  # a worker saves the batches of its replicas
        for index, batch in enumerate(error.batch, first):
            _save_batch(batch, path / f"batch_{index}")
        self.trainer.state.save_for_replay(path, write=agreement.chief)
        if not agreement.chief:
            return
        report = {
            "step": error.step,
            "losses": {name: str(value) for name, value in error.losses.items()},
            "gradients": [str(one) for one in error.gradients],
            "replicas": self.trainer.strategy.num_replicas_in_sync,
            "micro_batches": self.trainer.train_step.accumulate,
            "command": [sys.executable, *sys.orig_argv[1:]],
            "directory": os.getcwd(),
        }
        replace_file(path / "report.json", json.dumps(report, indent=2), is_own=_is_report)


def _save_batch(batch: Any, path: Path) -> None:
    """Saves a batch of one replica. An earlier one, of the same step, is replaced."""
    if os.path.lexists(path) and not (path / "dataset_spec.pb").is_file():
        set_aside(path)  # somebody else's
    with replacement(path) as new:
        tf.data.Dataset.from_tensors(batch).save(str(new.path))
        new.commit()


def _nonfinite_inputs(evidence: tuple[Any, ...]) -> list[str]:
    """Describes the tensors of the batches that have NaN or infinite values."""
    counts: dict[str, tuple[int, int]] = {}
    for batch in evidence:
        for path, leaf in batches.open_nest(batch, "batch")[0]:
            for part in tf.nest.flatten(leaf, expand_composites=True):
                if part is None or not tf.as_dtype(part.dtype).is_floating:
                    continue
                values = tf.cast(part, tf.float32).numpy()  # NumPy knows no bfloat16
                bad, total = counts.get(path, (0, 0))
                counts[path] = int((~np.isfinite(values)).sum()) + bad, values.size + total
    return [
        f"{tensor_name(path) or 'batch'!r} ({bad} of {total})"
        for path, (bad, total) in counts.items()
        if bad
    ]


def _is_report(content: bytes) -> bool:
    """Whether `NaNGuard` wrote this."""
    return content.startswith(b'{\n  "step": ') and b'"micro_batches": ' in content


def guarded(hooks: Iterable[Hook]) -> Guarded:
    """Returns what must be finite, according to the `NaNGuard`s among the hooks.

    Args:
      hooks: The hooks of a run.
    """
    found = [hook.gradients for hook in hooks if isinstance(hook, NaNGuard)]
    if not found:
        return "nothing"
    return "losses and gradients" if any(found) else "losses"
