"""What a command of `tfloss` has a script do in place of training. Host code.

`tfloss replay`, `inspect` and `lr-range` start a training script with an environment variable,
which `Trainer.train` obeys when the model is built. The flag `--dry_run` sets the same variable.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfloss import replay
from tfloss.common.command_variables import INSPECT_VARIABLE, RANGE_VARIABLE, REPLAY_VARIABLE
from tfloss.common.replacement import replace_file
from tfloss.data.feed import Feed
from tfloss.distribute.strategy import is_chief
from tfloss.engine.engine import Engine
from tfloss.hooks.evaluate import Evaluate
from tfloss.inspect.report_page import page
from tfloss.step.train_step import TrainStep
from tfloss.trainer.hook_list import check_monitored_names
from tfloss.trainer.lr_range import range_test_and_exit


def obey_command(trainer: Any, data: Any) -> None:
    """Does what the environment asks for, if it asks for something. Runs on the host.

    Args:
      trainer: The trainer of the script, whose model is built.
      data: The data that the script trains on.

    Raises:
      SystemExit: Something was asked for, and is done.
    """
    if bundle := os.environ.get(REPLAY_VARIABLE):
        replay.replay_and_exit(trainer, bundle)
    if asked := os.environ.get(INSPECT_VARIABLE):
        _inspect(trainer, data, **json.loads(asked))
        raise SystemExit(0)
    if asked := os.environ.get(RANGE_VARIABLE):
        step = trainer.train_step
        feed = Feed(data, trainer.strategy, step.accumulate)
        range_test_and_exit(step, feed, asked, chief=trainer.agreement.chief)


def _inspect(
    trainer: Any,
    data: Any,
    *,
    dry_run: bool = False,
    compare: bool = False,
    report: str | None = None,
    html: str | None = None,
) -> None:
    """Prints a report of the run.

    Args:
      trainer: The trainer.
      data: The data that it trains on.
      dry_run: Whether to make one training step, and to call `Hook.dry_run` of each hook.
      compare: Whether to compare the replicas of the trainer with a single one.
      report: A file for the report as JSON, or None.
      html: A file for the report as a page, or None.
    """
    found = trainer.inspect(data)
    if compare:
        from tfloss.trainer.replica_comparison import compared

        found = compared(trainer, data, found)
    if is_chief(trainer.strategy):
        print(found)
        if report is not None:
            replace_file(Path(report), json.dumps(found.to_json(), indent=1) + "\n")
        if html is not None:
            replace_file(Path(html), page(found))
    if dry_run:
        _try_out(trainer, data)
    trainer._run.lock.delete_alone()


def _try_out(trainer: Any, data: Any) -> None:
    """Makes one training step, then has each hook do once what it does, and prints what it was."""
    show = print if is_chief(trainer.strategy) else lambda *lines, sep: None
    step = trainer.train_step
    losses, tags = _train_one_step(step, Feed(data, trainer.strategy, step.accumulate))
    check_monitored_names(trainer.hooks, tags, step)
    lines = [f"  {name} {value:.5g}" for name, value in losses.items()]
    show("\nOne training step was made", *lines, sep="\n")
    for hook in trainer.hooks:
        with tempfile.TemporaryDirectory() as folder:
            lines = hook.dry_run(Path(folder))
        if lines:
            show("", *lines, sep="\n")
    if not any(isinstance(hook, Evaluate) for hook in trainer.hooks):
        show("\nNo batch is evaluated: train() has no Evaluate hook.", sep="\n")


def _train_one_step(step: TrainStep, feed: Feed) -> tuple[dict[str, float], list[str]]:
    """Makes one step as a graph, with its summaries. Returns its losses, and what it logs."""
    try:
        logs = Engine(step).run(feed.input.source("graph"), 1, recording=True)
    except (tf.errors.OutOfRangeError, StopIteration):
        feed.after_end(0, 1)
        raise
    columns = dict(zip(logs.names, logs.rows()[0].tolist(), strict=True))
    tags = [*logs.names, *(one.name for one in logs.summaries)]
    return {name: columns[tag] for tag, name in logs.losses.items()}, tags
