"""What a run is, for TensorBoard: its recipe, command, hyperparameters and variables. Host code.

The recipe is what decides the result, as far as the trainer knows it: `config.json` of a script,
the optimizers, the options of the step, and the size of a batch.
"""

import contextlib
import json
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfloss.common.nested_diff import flatten
from tfloss.common.reading import read_json
from tfloss.forward.losses import TOTAL, described_weight
from tfloss.hooks.event_protos import summary_event
from tfloss.hooks.run_headline import run_headline
from tfloss.hooks.trainer_protocol import TrainerProtocol
from tfloss.inspect.report import InspectedVariable, aligned, number, variables_table
from tfloss.optimizers import hyperparameters
from tfloss.summary import Summary

_HPARAMS_TAG = "_hparams_/session_start_info"
# Of a serialized object of Keras; its class and its arguments say enough.
_NOT_PLAIN = ("name", "module", "registered_name")
INSPECTION_TAG = "inspect"
DESCRIPTION_TAGS = ("recipe", "command", INSPECTION_TAG, _HPARAMS_TAG)


def recipe(trainer: TrainerProtocol) -> dict[str, Any]:
    """Returns the recipe of a run, as nested JSON values.

    Args:
      trainer: The trainer, in a call of `train`.
    """
    found: dict[str, Any] = {}
    file = trainer.workdir and trainer.workdir / "config.json"
    if file is not None:
        with contextlib.suppress(OSError, ValueError):  # no script; a full disk
            found["config"] = read_json(file)
    optimizers = {name: _optimizer(one) for name, one in trainer.train_step.optimizers.items()}
    found["optimizer"] = next(iter(optimizers.values())) if len(optimizers) == 1 else optimizers
    found["step"] = trainer.train_step.settings()
    found["batch_size"], found["steps"] = trainer.run.batch_size, trainer.run.steps
    found["replicas"] = trainer.strategy.num_replicas_in_sync
    return found


def description_events(
    trainer: TrainerProtocol, directory: Path, step: int, wall_time: float, *, texts: bool
) -> list[bytes]:
    """Returns what a run of TensorBoard says of itself: the hyperparameters, and texts.

    TensorBoard calls a directory with hyperparameters a session, and finds metrics in sessions only
    and below them, but not below the directory that it was given. So each run is a session.

    Args:
      trainer: The trainer, in a call of `train`.
      directory: Directory of the run, which names it: `digits/val`.
      step: Step of the events.
      wall_time: Seconds since 1970.
      texts: Whether to describe the run by the texts `recipe` and `command`, too.

    Returns:
      The events, serialized.
    """
    found = recipe(trainer)
    events = [_hparams(found, directory, step, wall_time)]
    if not texts:
        return events
    text = json.dumps(found, indent=2, default=str)
    command = shlex.join([sys.executable, *sys.orig_argv[1:]])
    pages = {"recipe": _code(text), "command": _code(command)}
    return events + [_text_event(tag, page, step, wall_time) for tag, page in pages.items()]


def inspection_event(
    trainer: TrainerProtocol, losses: Iterable[str], step: int, wall_time: float
) -> bytes:
    """Returns what `tfloss inspect` shows and costs no trace: the text `inspect`, serialized.

    It has the short form that each run shows, the losses with their weights, and all variables.
    What needs a trace of its own is left out: source lines, which loss reaches what, FLOPs, memory.

    Args:
      trainer: The trainer, in a call of `train`, at or after its first step.
      losses: Names of the losses of a step.
      step: Step of the event.
      wall_time: Seconds since 1970.
    """
    model, groups = trainer.model, trainer.train_step.groups
    losses = [name for name in losses if name != TOTAL]
    owner = {id(v): name for name, group in groups.items() for v in group.trainable(model)}
    variables = [
        InspectedVariable(
            path=variable.path,
            shape=tuple(variable.shape),
            dtype=str(variable.dtype),
            group=owner.get(id(variable), ""),
            trainable=variable.trainable,
            rate_multiplier=(
                groups[owner[id(variable)]].multiplier(variable, model)
                if id(variable) in owner
                else 1.0
            ),
            losses=(),
        )
        for variable in model.variables
    ]
    lines = aligned([["model", model.name], *run_headline(trainer, losses)])
    weights = [[name, _weight(trainer, name)] for name in losses]
    lines += ["", "Losses", *aligned([["loss", "weight"], *weights])]
    # The last column is known to a trace only.
    lines += ["", "Variables", *aligned([row[:-1] for row in variables_table(variables)])]
    return _text_event(INSPECTION_TAG, _code("\n".join(lines)), step, wall_time)


def _weight(trainer: TrainerProtocol, loss: str) -> str:
    """Returns the weight of a loss, or "-" if `TrainStep.step` chose its name."""
    name = trainer.train_step.weighted_losses.get(loss)
    return (
        "-" if name is None else number(described_weight(trainer.train_step.loss_weights.of(name)))
    )


def _text_event(tag: str, page: str, step: int, wall_time: float) -> bytes:
    return summary_event(step, wall_time, Summary(tag, "text", np.array(page.encode(), object)))


def _hparams(found: Mapping[str, Any], directory: Path, step: int, wall_time: float) -> bytes:
    """Returns an event with the hyperparameters: numbers, texts and flags of the recipe."""
    # Imported here, since it takes a while.
    from tensorboard.plugins.hparams import summary_v2

    values = {
        name.removeprefix("config.").removeprefix("--"): value
        for name, value in flatten(found, ".").items()
        if isinstance(value, bool | int | float | str)
    }
    name = "/".join(directory.absolute().parts[-2:])
    proto = summary_v2.hparams_pb({**values, "run": directory.name}, trial_id=name)
    event = tf.compat.v1.Event(step=step, wall_time=wall_time)
    event.summary.ParseFromString(proto.SerializeToString())
    return event.SerializeToString()


def _optimizer(optimizer: keras.optimizers.Optimizer) -> dict[str, Any]:
    """Returns the class of an optimizer, its numbers, and its schedules with their numbers."""
    try:
        config = optimizer.get_config()
    except Exception:  # the user's own optimizer, or a rate without source code
        config = hyperparameters.numbers(optimizer)
    return {"class": type(optimizer).__name__, **_plain(config)}


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            kind, arguments = value.get("class_name"), value.get("config")
            if isinstance(kind, str) and isinstance(arguments, Mapping):  # a serialized object
                found[name] = {"class": kind, **_plain(arguments)}
            else:
                found[name] = _plain(value)
        elif isinstance(value, np.generic):
            found[name] = value.item()
        elif isinstance(value, bool | int | float | str) and name not in _NOT_PLAIN:
            found[name] = value
    return found


def _code(text: str) -> str:
    """Markdown that shows a text as it is."""
    return "\n".join(f"    {line}" for line in text.splitlines())
