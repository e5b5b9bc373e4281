"""Hooks: evaluation, checkpoints, logs and more during training, one file each.

    trainer.train(data, steps=2_000, hooks=[Evaluate(...), SaveCheckpoint(...), Progress()])

They run on the host, between calls of the training step, at exactly the steps that they ask for.
Subclasses of `Hook` add others.
"""

from typing import Any

from tfloss.common.other_names import HOOKS, hint
from tfloss.hooks.base import Hook
from tfloss.hooks.early_stopping import EarlyStopping
from tfloss.hooks.evaluate import Evaluate
from tfloss.hooks.every import Every, OnSteps
from tfloss.hooks.export_best import ExportBest
from tfloss.hooks.keras_callbacks import KerasCallbacks
from tfloss.hooks.log_predictions import LogPredictions
from tfloss.hooks.metrics_file import MetricsFile
from tfloss.hooks.mlflow import MLflow
from tfloss.hooks.nan_guard import NaNGuard
from tfloss.hooks.profile import Profile
from tfloss.hooks.progress import Progress
from tfloss.hooks.reduce_on_plateau import ReduceOnPlateau
from tfloss.hooks.run_info import RunInfo
from tfloss.hooks.save_checkpoint import SaveCheckpoint
from tfloss.hooks.tensorboard import TensorBoard
from tfloss.hooks.time_limit import TimeLimit
from tfloss.hooks.unfreeze import Unfreeze
from tfloss.hooks.wandb import WandB
from tfloss.hooks.watch import Watch
from tfloss.hooks.watchdog import Watchdog

__all__ = [
    "OnSteps",
    "EarlyStopping",
    "Evaluate",
    "Every",
    "ExportBest",
    "Hook",
    "KerasCallbacks",
    "MLflow",
    "MetricsFile",
    "NaNGuard",
    "Profile",
    "Progress",
    "ReduceOnPlateau",
    "RunInfo",
    "SaveCheckpoint",
    "LogPredictions",
    "TensorBoard",
    "TimeLimit",
    "Unfreeze",
    "WandB",
    "Watch",
    "Watchdog",
]


def __getattr__(name: str) -> Any:
    """Answers names of other libraries with those of tfloss."""
    text = hint(name, __all__, HOOKS)
    raise AttributeError(f"module 'tfloss.hooks' has no attribute {name!r}.{text}")
