"""Stops training before an update with losses that are not finite, and saves the evidence.

    NaNGuard()      # one of the trainer's default hooks

The check is part of the training step (`tfloss.engine.engine`). So it runs at every step, also
inside a call of many steps, and the update with the bad gradient is never applied. This hook
enables the check. When it fails, the hook writes `workdir/nonfinite/step_00000137/`: the batch, the
state before the step and the command. `tfloss replay WORKDIR` runs that step again.
"""

import json
import os
import sys
from pathlib import Path

import tensorflow as tf

from tfloss.errors import NonFiniteLossError
from tfloss.hooks.base import Hook


class NaNGuard(Hook):
    """Makes `Trainer.train` raise `NonFiniteLossError`, with the loss and the step. Host.

    No checkpoint is saved after the error. Without a workdir nothing is written. If the losses are
    finite and the gradient is not, the check fails at the next step; with `Trainer(clip_norm=...)`,
    which computes the gradient's norm anyway, it fails at the same step.
    """

    def after_train(self) -> None:
        """Saves batch, state and command after a `NonFiniteLossError`."""
        error = self.trainer.error
        workdir = self.trainer.workdir
        if not isinstance(error, NonFiniteLossError):
            return
        if workdir is None:
            error.add_note(
                "To find the first value that is not finite, give the Trainer a workdir, which "
                "keeps the batch, and train again."
            )
        else:
            path = workdir / "nonfinite" / f"step_{error.step:08d}"
            self._save(path, error)
            error.add_note(
                f"Its batch is in {path}. To find the first value that is not finite: "
                f"tfloss replay {workdir}"
            )

    def _save(self, path: Path, error: NonFiniteLossError) -> None:
        path.mkdir(parents=True, exist_ok=True)
        agreement = self.trainer.agreement
        first = agreement.index * len(error.batch)  # a worker saves the batches of its replicas
        for index, batch in enumerate(error.batch, first):
            tf.data.Dataset.from_tensors(batch).save(str(path / f"batch_{index}"))
        self.trainer.state.save_for_replay(path, write=agreement.chief)
        if not agreement.chief:
            return
        report = {
            "step": error.step,
            "losses": {name: str(value) for name, value in error.losses.items()},
            "replicas": self.trainer.strategy.num_replicas_in_sync,
            "micro_batches": self.trainer.train_step.accumulate,
            "command": [sys.executable, *sys.orig_argv[1:]],
            "directory": os.getcwd(),
        }
        (path / "report.json").write_text(json.dumps(report, indent=2))
