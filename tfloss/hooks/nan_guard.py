"""Stops before an update whose losses are not finite, and keeps what it takes to see why.

NaNGuard()      # among the trainer's default hooks

The check is part of the training step (`tfloss.engine.engine`), so it is made at every step, inside
a call of many, and the update with the bad gradient is never applied. This hook turns the
check on and, when it has tripped, writes `workdir/nonfinite/step_00000137/`: the batch, the
state before the step and the command. `tfloss replay WORKDIR` runs that one step again.
"""

import json
import os
import sys
from pathlib import Path

import tensorflow as tf

from tfloss.errors import NonFiniteLossError
from tfloss.hooks.base import Hook


class NaNGuard(Hook):
    """Raises `NonFiniteLossError` out of `Trainer.train`, naming loss and step. Host.

    The last checkpoint stays the last good one. Without a workdir nothing is written.
    A gradient that is not finite while the losses still are shows at the next step, or at
    once if the trainer has a `clip_norm`, which needs the gradient's norm anyway.
    """

    def after_train(self) -> None:
        error = self.trainer.error
        workdir = self.trainer.workdir
        if not isinstance(error, NonFiniteLossError):
            return
        if workdir is None:
            error.add_note(
                "To see what went bad first, give the Trainer a workdir to keep the batch, and "
                "train again."
            )
        else:
            path = workdir / "nonfinite" / f"step_{error.step:08d}"
            self._save(path, error)
            error.add_note(
                f"Its batch is in {path}. To see what went bad first: tfloss replay {workdir}"
            )

    def _save(self, path: Path, error: NonFiniteLossError) -> None:
        path.mkdir(parents=True, exist_ok=True)
        agreement = self.trainer.agreement
        first = agreement.index * len(error.batch)  # each worker has its own replicas' batches
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
