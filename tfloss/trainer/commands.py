"""What a command of `tfloss` has a script do in place of training. Host code.

`tfloss replay`, `inspect` and `lr-range` start a training script with an environment variable,
which `Trainer.train` obeys when the model is built. The flag `--dry_run` sets the same variable.
"""

import json
import os
from pathlib import Path
from typing import Any

from tfloss import replay
from tfloss.common.command_variables import INSPECT_VARIABLE, RANGE_VARIABLE, REPLAY_VARIABLE
from tfloss.common.replacement import replace_file
from tfloss.data.distributed import as_dataset
from tfloss.data.feed import Feed
from tfloss.distribute.strategy import is_chief
from tfloss.hooks.evaluate import Evaluate
from tfloss.inspect.report_page import page
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
      dry_run: Whether to evaluate one batch of each `Evaluate` hook.
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
        _evaluate_one_batch(trainer)


def _evaluate_one_batch(trainer: Any) -> None:
    hooks = [hook for hook in trainer.hooks if isinstance(hook, Evaluate)]
    for hook in hooks:
        batch = as_dataset(hook.data, trainer.strategy).take(1)
        results = trainer.evaluate(batch, hook.metrics, losses=hook.losses)
        if is_chief(trainer.strategy):
            print(f"\nOne batch of {hook.name!r}, with the initial weights")
            print(
                *(f"  {hook.name}/{name} {value:.5g}" for name, value in results.items()), sep="\n"
            )
    if not hooks:
        print("\nNo batch is evaluated: train() has no Evaluate hook.")
