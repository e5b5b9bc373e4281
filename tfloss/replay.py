"""Runs the step in which a loss became NaN again, eagerly, and says what went bad first.

    $ tfloss replay runs/digits

The command starts the training script again, as it was started then, with the variable
TFLOSS_REPLAY set: the script runs up to its first `trainer.train(...)`, which replays instead of
training and exits. What was trained in a notebook, at a prompt or from standard input can't be
started again; there, in the same process or one that has made the trainer as then:

    print(tfloss.replay.replay(trainer, "runs/digits/nonfinite/step_00000137"))

Host code, eager.
"""

import contextlib
import json
import os
import shlex
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, Protocol

import keras
import numpy as np
import tensorflow as tf

from tfloss import _upstream
from tfloss.checkpoint import CheckpointDirectory, load_manifest
from tfloss.forward.context import forward_context
from tfloss.forward.losses import collect
from tfloss.inspect.source_lines import is_library
from tfloss.step.train_step import TrainStep

VARIABLE = "TFLOSS_REPLAY"
_FOUND = "replay.txt"  # beside the batch: what was found, and that it was


class _Trainer(Protocol):
    """What of a `Trainer` is needed to run one of its steps."""

    model: keras.Model
    train_step: TrainStep
    state: Any  # a `CheckpointedState`, which is built on top of this module


def main(workdir: str | Path) -> int:
    """Replays the newest step kept under `workdir/nonfinite` by running its script again.

    Returns an exit code: 0 if the step was replayed; what was found is printed and kept beside
    the batch, in `replay.txt`.
    """
    kept = sorted(Path(workdir).glob("nonfinite/step_*/report.json"))
    if not kept:
        print(
            f"tfloss replay: no step is kept under {workdir}/nonfinite, so no loss of this run "
            "was NaN or infinite (or its trainer had no NaNGuard).",
            file=sys.stderr,
        )
        return 1
    path = kept[-1].parent.resolve()
    by_hand = (
        "In a process that has the trainer, made as it was then:\n\n"
        f"    print(tfloss.replay.replay(trainer, {str(path)!r}))"
    )
    if not _was_script(path):
        print(
            "tfloss replay: the run was no script that can be started again, but a notebook, a "
            f"prompt, python -c or standard input. {by_hand}",
            file=sys.stderr,
        )
        return 1
    report = json.loads(kept[-1].read_text())
    (path / _FOUND).unlink(missing_ok=True)
    code, ended = _start_again(report, path)
    if (path / _FOUND).exists():
        return 0
    print(
        f"tfloss replay: nothing was replayed. The command of that run {ended}, and no "
        "trainer.train(...) in it had replayed the step. It was, in "
        f"{report['directory']}:\n\n    {shlex.join(report['command'])}\n\n{by_hand}",
        file=sys.stderr,
    )
    return code or 1


def _start_again(report: dict[str, Any], path: Path) -> tuple[int, str]:
    """Runs the command of a run; its exit code, and how it ended, in words."""
    environment = {**os.environ, VARIABLE: str(path)}
    try:
        again = subprocess.run(report["command"], cwd=report["directory"], env=environment)
    except OSError as error:
        return 1, f"could not be started ({error})"
    return again.returncode, f"ended with exit code {again.returncode}"


def replay_and_exit(trainer: _Trainer, path: str | Path) -> NoReturn:
    """What `trainer.train` does in a script that was started by `tfloss replay`.

    Raises SystemExit with code 0 when the step was replayed.
    """
    found = replay(trainer, path)
    print(found)
    (Path(path) / _FOUND).write_text(found + "\n")
    raise SystemExit(0)


def replay(trainer: _Trainer, path: str | Path) -> str:
    """Runs one kept step again and returns what went bad first, as text.

    Loads the weights of that moment into the trainer's model. Don't train on afterwards.

    Args:
      trainer: the one that stopped, or one made as it was. Its model is built if it isn't.
      path: `workdir/nonfinite/step_00000137`.

    Raises:
      CheckpointError: the trainer's model is another one.
    """
    path = Path(path)
    report = json.loads((path / "report.json").read_text())
    trainer.train_step.build(_batch(path, 0)[0])
    lines = [f"Step {report['step']}, eagerly, as it was when these losses were seen:"]
    lines += [f"  {name} = {value}" for name, value in report["losses"].items()]
    trainer.state.restore_for_replay(path)
    bad = [
        v.path
        for v in trainer.model.variables
        if tf.as_dtype(v.dtype).is_floating and not np.isfinite(np.asarray(v.numpy())).all()
    ]
    if bad:
        lines.append(f"Not finite before the step began: {', '.join(bad)}")
    many = report["micro_batches"]
    for index in range(report["replicas"]):
        trainer.state.restore_for_replay(path, replica=index)
        # In order: each forward pass moves the random states on for the next.
        for micro in range(many):
            batch = _batch(path, index * many + micro)[1]
            where = f"Replica {index}" + (f", micro-batch {micro}" if many > 1 else "")
            lines.append(f"{where}: {_first_bad(trainer, batch, report['step'] - 1)}")
    return "\n".join(lines)


def _was_script(path: Path) -> bool:
    newest = CheckpointDirectory(path / "state").latest()
    return newest is None or load_manifest(newest)["extra"].get("script", True) is not None


def _batch(path: Path, index: int) -> tuple[Any, Any]:
    """A batch of a replica: its type, and itself."""
    dataset = tf.data.Dataset.load(str(path / f"batch_{index}"))
    return dataset.element_spec, dataset.get_single_element()


def _first_bad(trainer: _Trainer, batch: Any, step: int) -> str:
    """What TensorFlow's own check finds first, in the forward or the backward pass."""
    model, variables = trainer.model, trainer.model.trainable_variables
    phase = "forward"
    tf.debugging.enable_check_numerics()
    try:
        with _whole_tracebacks(), tf.GradientTape() as tape, _upstream.inputs_untouched(model):
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


@contextlib.contextmanager
def _whole_tracebacks() -> Iterator[None]:
    """Neither TensorFlow nor Keras takes frames out of an error, or adds to its message."""
    switches = [
        each for each in (tf.debugging, keras.config) if each.is_traceback_filtering_enabled()
    ]
    for each in switches:
        each.disable_traceback_filtering()
    try:
        yield
    finally:
        for each in switches:
            each.enable_traceback_filtering()


def _summary(error: Exception) -> str:
    """The op, its output and inputs, and the user's line."""
    lines, inputs = _upstream.failed_numerics_check(error)
    lines += [f"input {index}: {_described(one)}" for index, one in enumerate(inputs)]
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not is_library(f.filename)]
    where = [f"{frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}"] if frames else []
    return "\n  ".join([*(lines or [str(error)]), *where])


def _described(tensor: tf.Tensor) -> str:
    """`float32 [4, 2], 1 NaN, 2 infinite, the others from -1 to 4`. By NumPy: ops are watched."""
    text = f"{tensor.dtype.name} {tensor.shape.as_list()}"
    if not (tensor.dtype.is_floating or tensor.dtype.is_integer) or not tensor.shape.num_elements():
        return text
    values = tensor.numpy().astype(np.float64)
    nans, infinite = int(np.isnan(values).sum()), int(np.isinf(values).sum())
    finite = values[np.isfinite(values)]
    parts = [f"{nans} NaN"] * bool(nans) + [f"{infinite} infinite"] * bool(infinite)
    others = "the others" if parts else "all finite,"
    if finite.size:
        parts.append(f"{others} from {finite.min():g} to {finite.max():g}")
    return f"{text}, {', '.join(parts)}"
