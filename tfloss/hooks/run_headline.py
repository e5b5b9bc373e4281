"""What a run is, in a few lines that are shown when it starts. Host code."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from tfloss.forward.losses import TOTAL
from tfloss.hooks.base import Hook
from tfloss.hooks.progress import Progress
from tfloss.hooks.trainer_protocol import TrainerProtocol
from tfloss.inspect.report import short_form


def show_headline(hooks: Iterable[Hook], losses: Mapping[str, str]) -> None:
    """Has `Progress` show what the run is, on the first worker.

    Args:
      hooks: The hooks of a call of `train`.
      losses: `StepLogs.losses` of its first step.
    """
    for hook in hooks:
        if isinstance(hook, Progress) and hook.trainer.agreement.chief:
            hook.headline(run_headline(hook.trainer, losses.values()))


def run_headline(trainer: TrainerProtocol, losses: Iterable[str]) -> list[list[str]]:
    """Returns the short form of `Trainer.inspect`, as rows of a name and a value.

    Args:
      trainer: The trainer, in a call of `train`, whose model is built.
      losses: Names of the losses of a step.
    """
    model, groups = trainer.model, trainer.train_step.groups
    trained = {id(v): v for group in groups.values() for v in group.trainable(model)}
    return short_form(
        parameters=_count(model.weights),
        trained=_count(trained.values()),
        losses=[name for name in losses if name != TOTAL],
        groups={name: type(group.optimizer).__name__ for name, group in groups.items()},
        replicas=trainer.strategy.num_replicas_in_sync,
        batch_size=trainer.run.batch_size,
        workdir=None if trainer.workdir is None else str(trainer.workdir),
    )


def _count(variables: Iterable[Any]) -> int:
    return sum(math.prod(one.shape) for one in variables)
