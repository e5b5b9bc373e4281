"""Runs the step in which a loss became NaN again, eagerly, and says what went bad first.

    $ tfloss replay runs/digits
    $ python -c "...; tfloss.replay.replay(trainer, 'runs/digits/nonfinite/step_00000137')"

The command starts the training script again, as it was started then, with the variable
TFLOSS_REPLAY set; its `trainer.train(...)` then replays instead of training and exits.
Host code, eager.
"""

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from tfloss import _upstream
from tfloss.context import forward_context, is_library
from tfloss.losses import collect

if TYPE_CHECKING:
    from tfloss.trainer import Trainer

VARIABLE = "TFLOSS_REPLAY"


def main(workdir: str | Path) -> int:
    """Replays the newest step kept under `workdir/nonfinite`; returns an exit code."""
    kept = sorted(Path(workdir).glob("nonfinite/step_*/report.json"))
    if not kept:
        print(
            f"tfloss replay: no step is kept under {workdir}/nonfinite, so no loss of this run "
            "was NaN or infinite (or its trainer had no NaNGuard).",
            file=sys.stderr,
        )
        return 1
    report = json.loads(kept[-1].read_text())
    environment = {**os.environ, VARIABLE: str(kept[-1].parent.resolve())}
    return subprocess.run(report["command"], cwd=report["directory"], env=environment).returncode


def replay(trainer: "Trainer", path: str | Path) -> str:
    """Runs one kept step again and returns what went bad first, as text.

    Loads the weights of that moment into the trainer's model. Don't train on afterwards.

    Args:
      trainer: one made as then; its model must be built.
      path: `workdir/nonfinite/step_00000137`.
    """
    path = Path(path)
    report = json.loads((path / "report.json").read_text())
    lines = [f"Step {report['step']}, eagerly, as it was when these losses were seen:"]
    lines += [f"  {name} = {value}" for name, value in report["losses"].items()]
    trainer.state().restore_for_replay(path)
    bad = [
        v.path
        for v in trainer.model.variables
        if tf.as_dtype(v.dtype).is_floating and not np.isfinite(np.asarray(v.numpy())).all()
    ]
    if bad:
        lines.append(f"Not finite before the step began: {', '.join(bad)}")
    for index in range(report["replicas"]):
        trainer.state().restore_for_replay(path, replica=index)
        batch = tf.data.Dataset.load(str(path / f"batch_{index}")).get_single_element()
        lines.append(f"Replica {index}: {_first_bad(trainer, batch, report['step'] - 1)}")
    return "\n".join(lines)


def _first_bad(trainer: "Trainer", batch: Any, step: int) -> str:
    """What TensorFlow's own check finds first, in the forward or the backward pass."""
    model, variables = trainer.model, trainer.model.trainable_variables
    phase = "forward"
    tf.debugging.enable_check_numerics()
    try:
        with tf.GradientTape() as tape, _upstream.inputs_untouched(model):
            with forward_context(tf.constant(step, tf.int64), recording=False) as context:
                returned = trainer.train_step.forward(batch)
            losses = collect(returned, context, variables)
            weighted = trainer.train_step.loss_weights.apply(losses, context.step)
            total = tf.add_n(list(weighted.values()))
        phase = "backward"
        with context.backward():
            tape.gradient(total, [getattr(v, "value", v) for v in variables])
    except tf.errors.InvalidArgumentError as error:
        return f"in the {phase} pass, {_summary(error)}"
    finally:
        tf.debugging.disable_check_numerics()
    return (
        "every tensor of the forward and the backward pass was finite. What differs from then: "
        "no XLA, no fused kernels, one replica at a time."
    )


def _summary(error: Exception) -> str:
    """The op, its output and input, and the user's line, without Keras's framing."""
    kept = [
        line.strip()
        for line in str(error).splitlines()
        if any(word in line for word in ("!!!", "dtype:", "shape:", "elements:", "Input tensor"))
    ]
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not is_library(f.filename)]
    where = f"{frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else ""
    return "\n  ".join([kept[0].strip("! ") if kept else str(error), *kept[1:], where])
