"""Repeats the step in which a loss became NaN, eagerly, and reports what went wrong first.

    $ tfloss replay runs/digits

The command shows the original command of the training script, asks, and runs it again with the
environment variable TFLOSS_REPLAY. The script runs up to its first `trainer.train(...)`, which
replays the step instead of training, and exits. A run from a notebook, a prompt or standard input
can't be started again. There, use the same process, or one that has created the trainer in the same
way:

    print(tfloss.replay.replay(trainer, "runs/digits/nonfinite/step_00000137"))

Host code, eager.
"""

import contextlib
import linecache
import traceback
from collections.abc import Generator
from pathlib import Path
from typing import Any, NoReturn, Protocol

import keras
import numpy as np
import tensorflow as tf

from tfloss import _upstream
from tfloss.common.command_variables import RESULT_FILE
from tfloss.common.reading import read_json
from tfloss.common.replacement import replace_file
from tfloss.errors import CheckpointError
from tfloss.forward.context import forward_context
from tfloss.forward.losses import collect
from tfloss.inspect.source_lines import is_library
from tfloss.step.train_step import TrainStep
from tfloss.step.variables import forward_state


class _State(Protocol):
    """The part of a `CheckpointedVariables` that a replay needs."""

    def restore_for_replay(self, path: Path, replica: int = 0) -> None:
        """Restores the weights and the random states of one replica."""
        ...


class _Trainer(Protocol):
    """The part of a `Trainer` that is needed to run one of its steps."""

    model: keras.Model
    train_step: TrainStep
    state: Any  # a `CheckpointedVariables`, which is in a package above this module


def replay_and_exit(trainer: _Trainer, path: str | Path) -> NoReturn:
    """Replays a step in a script that `tfloss replay` has started. Runs on the host, eagerly.

    Args:
      trainer: Trainer of the script.
      path: Directory of the kept step.

    Raises:
      SystemExit: Always, with code 0, when the step was replayed.
    """
    result = replay(trainer, path)
    print(result)
    file = Path(path) / RESULT_FILE
    replace_file(file, result + "\n", is_own=lambda old: old.startswith(b"Step "))
    raise SystemExit(0)


def replay(trainer: _Trainer, path: str | Path) -> str:
    """Repeats one kept step and reports which op gave NaN or infinity first.

    This restores the weights of that step into the trainer's model. Don't continue training with
    this trainer. Runs on the host, eagerly.

    Args:
      trainer: Trainer that stopped, or one created in the same way. Its model is built if
        necessary.
      path: Directory of the kept step, such as `workdir/nonfinite/step_00000137`.

    Returns:
      The report, several lines of text.

    Raises:
      CheckpointError: The checkpoint does not fit the trainer's model, or the report of the step
        can't be read.
    """
    path = Path(path)
    try:
        report = read_json(path / "report.json")
        losses: dict[str, Any] = report["losses"]
        lines = [f"Step {report['step']}, run eagerly. Its losses during training were:"]
        lines += [f"  {name} = {value}" for name, value in losses.items()]
        lines += [f"Its gradient was not finite: {one}" for one in report.get("gradients", ())]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path / 'report.json'} is not the report of a step that NaNGuard kept ({error!r})."
        ) from None
    trainer.train_step.build(_load_batch(path, 0)[0])
    state: _State = trainer.state
    state.restore_for_replay(path)
    bad = [
        v.path
        for v in trainer.model.variables
        if tf.as_dtype(v.dtype).is_floating and not np.isfinite(np.asarray(v.numpy())).all()
    ]
    if bad:
        lines.append(f"Not finite before the step: {', '.join(bad)}")
    micro_batches = report["micro_batches"]
    for index in range(report["replicas"]):
        state.restore_for_replay(path, replica=index)
        # In order, since each forward pass advances the random states.
        for micro in range(micro_batches):
            batch = _load_batch(path, index * micro_batches + micro)[1]
            where = f"Replica {index}" + (f", micro-batch {micro}" if micro_batches > 1 else "")
            lines.append(f"{where}: {_first_nonfinite(trainer, batch, report['step'] - 1)}")
    return "\n".join(lines)


def _load_batch(path: Path, index: int) -> tuple[Any, Any]:
    """Loads a batch of a replica. Returns its element spec and the batch."""
    dataset = tf.data.Dataset.load(str(path / f"batch_{index}"))
    return dataset.element_spec, dataset.get_single_element()


def _first_nonfinite(trainer: _Trainer, batch: Any, step: int) -> str:
    """Runs forward and backward pass, and describes the first op with a non-finite output.

    A finite loss may have a gradient that is not finite. Then the first such op of the backward
    pass is described, too: infinities in the forward pass may be harmless.
    """
    states = forward_state(trainer.model, tf.distribute.get_strategy())
    before = [tf.identity(one) for one in states]
    found = []
    with _unfiltered_tracebacks():
        try:
            with _numerics_checked():
                _forward(trainer, batch, step)
        except tf.errors.InvalidArgumentError as error:
            found.append(f"in the forward pass, {_describe_error(error)}")
        for variable, value in zip(states, before, strict=True):
            variable.assign(value)
        ops = _upstream.ForwardOps()
        with tf.GradientTape() as tape:
            with ops.recorded(is_library):
                total, context = _forward(trainer, batch, step)
        variables = [getattr(v, "value", v) for v in trainer.model.trainable_variables]
        try:
            if not found or np.isfinite(total.numpy()):
                with context.backward(), _numerics_checked():
                    tape.gradient(total, variables)
        except tf.errors.InvalidArgumentError as error:
            where = _describe_forward_op(ops.failed_gradient(error))
            found.append(f"in the backward pass, {where}{_describe_error(error)}")
    if found:
        return "\n  ".join(found)
    return (
        "every tensor of the forward and the backward pass was finite. The replay differs from "
        "training: no XLA, no fused kernels, one replica at a time."
    )


def _forward(trainer: _Trainer, batch: Any, step: int) -> tuple[tf.Tensor, Any]:
    """Runs the training forward. Returns the sum of the weighted losses, and its context."""
    model = trainer.model
    with _upstream.inputs_untouched(model):
        with forward_context(tf.constant(step, tf.int64), recording=False) as context:
            returned = trainer.train_step.forward(batch)
        losses = collect(returned, context, model.trainable_variables)
        weighted = trainer.train_step.loss_weights.apply(losses, context.step)
        return tf.add_n(list(weighted.values())), context


def _describe_forward_op(found: tuple[str, Any] | None) -> str:
    """Names the op whose gradient failed, and the user's line."""
    if found is None:
        return ""
    op, call = found
    if call is None:
        return f"in the gradient of op {op!r}, "
    _, file, line = call
    return (
        f"in the gradient of op {op!r} ({file}:{line}: {linecache.getline(file, line).strip()}), "
    )


@contextlib.contextmanager
def _numerics_checked() -> Generator[None]:
    """Inside the `with` each op with a NaN or infinite output raises InvalidArgumentError."""
    tf.debugging.enable_check_numerics()
    try:
        yield
    finally:
        tf.debugging.disable_check_numerics()


@contextlib.contextmanager
def _unfiltered_tracebacks() -> Generator[None]:
    """Makes TensorFlow and Keras keep all frames of tracebacks, and messages as they are."""
    switches: list[Any] = [
        each for each in (tf.debugging, keras.config) if each.is_traceback_filtering_enabled()
    ]
    for each in switches:
        each.disable_traceback_filtering()
    try:
        yield
    finally:
        for each in switches:
            each.enable_traceback_filtering()


def _describe_error(error: Exception) -> str:
    """Describes the op, its output and inputs, and the user's line."""
    lines, inputs = _upstream.failed_numerics_check(error)
    lines += [f"input {index}: {_describe(tensor)}" for index, tensor in enumerate(inputs)]
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not is_library(f.filename)]
    where = [f"{frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}"] if frames else []
    return "\n  ".join([*(lines or [str(error)]), *where])


def _describe(tensor: tf.Tensor) -> str:
    """Describes a tensor: `float32 [4, 2], 1 NaN, 2 infinite, the others from -1 to 4`.

    It uses NumPy, because the numerics check watches the ops of TensorFlow.
    """
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
