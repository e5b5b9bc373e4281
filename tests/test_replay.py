"""A step whose loss became NaN is repeated, and the op at fault is reported."""

import json
import os
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.fork import run_script
from tests.toys import Line, rows
from tfloss import replay
from tfloss.app import replay_command
from tfloss.common.command_variables import REPLAY_VARIABLE
from tfloss.errors import CheckpointError, NonFiniteLossError

SCRIPT = """
import keras, numpy as np, tensorflow as tf, tfloss

class Model(keras.Model):
    def __init__(self):
        super().__init__(name="model")
        self.dense = keras.layers.Dense(1, kernel_initializer="ones")
        self.drop = keras.layers.Dropout(0.5, seed=1)

    def call(self, batch, training=False):
        y = self.drop(self.dense(batch["x"]), training=training)
        return {"root": tf.reduce_mean(
            tf.sqrt(y)  # the culprit
        ), "fine": tf.reduce_mean(y)}

keras.utils.set_random_seed(0)
x = np.ones([5, 4, 1], np.float32)
x[3] = [[-1.0], [2.0], [3.0], [4.0]]
data = tf.data.Dataset.from_tensor_slices({"x": x}).repeat()
trainer = tfloss.Trainer(Model(), keras.optimizers.SGD(0.0), workdir="run", jit=False)
trainer.train(data, steps=100)
"""


def _run(*command, cwd):
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, capture_output=True, text=True, timeout=120
    )


def test_a_nan_is_replayed_by_the_command_and_traced_to_its_line(tmp_path):
    # A fork of a process that has TensorFlow has another command line than the script.
    started = (
        f"import os, sys\nsys.orig_argv = ['python', 'train.py']\nos.chdir({str(tmp_path)!r})\n"
    )
    (tmp_path / "train.py").write_text(started + SCRIPT)
    # Every 5th batch has the negative number; Dropout(0.5) hides it in some of them.
    first = run_script(tmp_path / "train.py")
    assert first.returncode != 0
    assert "NonFiniteLossError" in first.stderr and f"tfloss replay {tmp_path}/run" in first.stderr
    unasked = _run("-m", "tfloss.cli", "replay", "run", cwd=tmp_path)
    assert unasked.returncode == 2 and "If you trust whoever wrote this" in unasked.stderr
    shown = f"In {tmp_path} it was:\n\n    {sys.executable} train.py\n"
    assert shown in unasked.stdout and "Sqrt" not in unasked.stdout
    again = _run("-m", "tfloss.cli", "replay", "run", "--yes", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith(unasked.stdout)
    assert "in the forward pass" in again.stdout
    assert "Sqrt" in again.stdout
    assert "input 0: float32 [4, 1], all finite, from -2 to 6\n" in again.stdout
    assert "tf.sqrt(y)  # the culprit" in again.stdout
    found = next(tmp_path.glob("run/nonfinite/step_*/replay.txt"))
    assert found.read_text() in again.stdout


@pytest.mark.slow
def test_a_run_from_standard_input_is_not_started_again(tmp_path):
    first = subprocess.run(
        [sys.executable, "-"],
        input=textwrap.dedent(SCRIPT),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "NonFiniteLossError" in first.stderr
    again = _run("-m", "tfloss.cli", "replay", "run", cwd=tmp_path)
    assert again.returncode == 1 and again.stdout == ""
    assert (
        "standard input, so it can't be started again. In a process that has created the trainer"
        in again.stderr
    )
    (kept,) = tmp_path.glob("run/nonfinite/step_*")
    assert f"print(tfloss.replay.replay(trainer, '{kept}'))" in again.stderr


def test_a_run_without_a_nonfinite_step_is_reported(tmp_path, capsys):
    assert replay_command.main(tmp_path) == 1
    assert "no step is kept" in capsys.readouterr().err


def _trainer(workdir, report=None):
    model = Line(report or (lambda m, b, y: {"root": tf.reduce_mean(tf.sqrt(y))}))
    mine = [tfloss.hooks.NaNGuard()]
    return tfloss.Trainer(
        model, keras.optimizers.SGD(0.0), workdir=workdir, hooks=mine, default_hooks=False
    )


def _root(m, b, y):
    return {"root": tf.reduce_mean(tf.sqrt(y))}  # the culprit is Sqrt


def _entropy(m, b, y):
    log = tf.math.log(y)  # the culprit is Log
    return {"entropy": tf.reduce_mean(tf.where(y > 0.0, log, 0.0))}


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A trainer whose third step was not finite, and the directory of that step."""
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "train.py", raising=False)
    one = _trainer(tmp_path)
    with pytest.raises(NonFiniteLossError):
        one.train(rows([4.0, 3.0, 2.0, 1.0, 9.0, -1.0], 2), steps=5)
    return one, tmp_path / "nonfinite" / "step_00000003"


def test_a_step_is_replayed_by_the_trainer_that_stopped_or_by_a_new_one(stopped):
    trainer, path = stopped
    for one in (trainer, _trainer(None)):
        found = tfloss.replay.replay(one, path)
        assert "root = nan" in found
        assert "Replica 0: in the forward pass, Detected Infinity or NaN" in found
        assert "input 0: float32 [2], all finite, from -1 to 9\n" in found
        assert "test_replay.py:" in found and "tf.sqrt(y))}" in found


@pytest.mark.parametrize("function", [_root, _entropy])
def test_the_op_of_a_nonfinite_gradient_is_named_with_its_line(function, tmp_path):
    trainer = _trainer(tmp_path, function)
    with pytest.raises(NonFiniteLossError, match="gradient is not finite at step 2"):
        trainer.train(rows([1.0, 1.0, 0.0, 1.0], 2), steps=3)
    found = tfloss.replay.replay(_trainer(None, function), tmp_path / "nonfinite/step_00000002")
    name, op = ("root", "Sqrt") if function is _root else ("entropy", "Log")
    assert f"Its gradient was not finite: of loss '{name}' for 'line/w'" in found
    assert f"in the backward pass, in the gradient of op '{op}' ({__file__}:" in found
    assert f"# the culprit is {op}), Detected Infinity or NaN" in found
    # The logarithm of 0 is found in the forward pass, too; the root of 0 is 0.
    assert ("in the forward pass, Detected Infinity" in found) == (function is _entropy)


def test_infinities_that_are_meant_do_not_hide_the_op_of_a_bad_gradient(tmp_path):
    def masked(m, b, y):
        weights = tf.nn.softmax(tf.stack([y[0], -np.inf * tf.ones([])]))
        return {"root": tf.sqrt(y[0]) + tf.reduce_sum(weights)}

    trainer = _trainer(tmp_path, masked)
    with pytest.raises(NonFiniteLossError):
        trainer.train(rows([0.0], 1), steps=1)
    found = tfloss.replay.replay(trainer, tmp_path / "nonfinite/step_00000001")
    assert "in the backward pass, in the gradient of op 'Sqrt'" in found


@pytest.mark.parametrize("count", [1, 2])
def test_every_replica_is_replayed(count, tmp_path, replicas):
    with (strategy := replicas(count)).scope():
        model = Line(lambda m, b, y: {"root": tf.reduce_mean(tf.sqrt(y))})
        trainer = tfloss.Trainer(
            model, keras.optimizers.SGD(0.0), strategy=strategy, workdir=tmp_path
        )
    with pytest.raises(NonFiniteLossError):
        trainer.train(rows([1.0, 2.0, -1.0, 3.0], 4), steps=1)
    found = tfloss.replay.replay(trainer, tmp_path / "nonfinite" / "step_00000001")
    assert f"Replica {count - 1}: in the forward pass" in found
    if count == 2:
        assert "Replica 0: every tensor of the forward and the backward pass was finite" in found


class _Draws(keras.Model):
    """Reports what it draws, and remembers what it drew eagerly."""

    def __init__(self, global_generator):
        super().__init__(name="draws")
        self.w = self.add_weight(name="w", shape=(), initializer="ones")
        self.drop = keras.layers.Dropout(0.5, name="drop")
        self.global_generator = global_generator
        self.seen = []

    def call(self, batch, training=False):
        drawn = [keras.random.uniform([]), tf.reduce_mean(self.drop(tf.ones([99]), training=True))]
        if self.global_generator:
            drawn.append(tf.random.get_global_generator().uniform([]))
        if tf.executing_eagerly():
            self.seen.append([float(one) for one in drawn])
        losses = {f"drawn_{index}": one + 0.0 * self.w for index, one in enumerate(drawn)}
        return {**losses, "root": tf.reduce_mean(tf.sqrt(self.w * batch["x"]))}


@pytest.mark.parametrize("count", [1, 2])
def test_a_replayed_step_draws_the_numbers_of_the_step(count, tmp_path, replicas):
    strategy = replicas(count)

    def trainer():
        with strategy.scope():
            model = _Draws(global_generator=count == 1)
            sgd = keras.optimizers.SGD(0.0)
            return tfloss.Trainer(model, sgd, strategy=strategy, workdir=tmp_path, jit=False)

    tf.random.set_global_generator(tf.random.Generator.from_seed(3))
    with pytest.raises(NonFiniteLossError) as error:
        trainer().train(rows([4.0, 3.0, 2.0, 1.0, 9.0, -1.0], 2), steps=5)
    losses = [value for name, value in error.value.losses.items() if name.startswith("drawn")]

    keras.utils.set_random_seed(11)
    other = trainer()
    tfloss.replay.replay(other, tmp_path / "nonfinite/step_00000003")
    # Each replica's forward pass is run twice: once to check it, once with its gradient.
    first, again = other.model.seen[::2], other.model.seen[1::2]
    assert first == again and len(first) == count
    assert np.mean(first, 0).tolist() == pytest.approx(losses, rel=1e-6)
    assert len(set(map(tuple, first))) == count


def test_every_micro_batch_is_replayed(tmp_path):
    model = Line(lambda m, b, y: {"root": tf.reduce_mean(tf.sqrt(y))})
    trainer = tfloss.Trainer(model, keras.optimizers.SGD(0.0), accumulate=2, workdir=tmp_path)
    with pytest.raises(NonFiniteLossError):
        trainer.train(rows([1.0, 2.0, -1.0, 3.0], 2), steps=1)
    found = tfloss.replay.replay(trainer, tmp_path / "nonfinite" / "step_00000001")
    assert "Replica 0, micro-batch 0: every tensor of the forward" in found
    assert "Replica 0, micro-batch 1: in the forward pass" in found


def _rerun(path, script, workdir):
    """Runs `tfloss replay` after the script has changed."""
    report = json.loads((path / "report.json").read_text())
    report["command"] = [*script]
    report["directory"] = str(workdir)
    (path / "report.json").write_text(json.dumps(report))
    return replay_command.main(workdir, yes=True)


def test_a_script_that_does_not_reach_train_is_reported(stopped, tmp_path, capfd):
    _, path = stopped
    assert _rerun(path, [sys.executable, "-c", "print('hello')"], tmp_path) == 1
    out, err = capfd.readouterr()
    assert out.startswith("tfloss replay: this runs the") and out.endswith("\n\nhello\n")
    assert "nothing was replayed" in err and "ended with exit code 0" in err
    assert f"tfloss.replay.replay(trainer, '{path}')" in err
    assert _rerun(path, [sys.executable, "-c", "raise SystemExit(7)"], tmp_path) == 7
    assert "ended with exit code 7" in capfd.readouterr().err
    assert _rerun(path, [str(tmp_path / "python")], tmp_path) == 2
    assert "could not be started" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("typed", "runs"), [("y", True), (" YES ", True), ("n", False), ("", False), (None, False)]
)
def test_a_person_is_asked(stopped, tmp_path, capsys, monkeypatch, typed, runs):
    def ask(question):
        if typed is None:
            raise EOFError
        return typed

    monkeypatch.setattr("builtins.input", ask)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    command = ["touch", str(tmp_path / "ran"), "x\r\x1b[2K; harmless"]
    (stopped[1] / "report.json").write_text(
        json.dumps({"command": command, "directory": str(tmp_path)})
    )
    assert replay_command.main(tmp_path) == (1 if runs else 2)
    assert (tmp_path / "ran").exists() == runs
    out = capsys.readouterr().out
    assert rf"touch {tmp_path}/ran 'x\r\x1b[2K; harmless'" in out  # nothing is hidden


@pytest.mark.parametrize(
    "report",
    ["", "[]", '{"command": [], "directory": "/"}', '{"command": "rm", "directory": "/"}',
     '{"command": ["a", 1], "directory": "/"}', '{"command": ["a\\u0000"], "directory": "/"}'],
)  # fmt: skip
def test_a_report_without_a_command_is_refused(stopped, tmp_path, capsys, report):
    (stopped[1] / "report.json").write_text(report)
    assert replay_command.main(tmp_path, yes=True) == 1
    assert "holds no command that a NaNGuard wrote" in capsys.readouterr().err


def test_a_report_that_can_not_be_read_is_not_waited_for(stopped, tmp_path, capsys):
    trainer, path = stopped
    (path / "report.json").unlink()
    os.mkfifo(path / "report.json")
    assert replay_command.main(tmp_path, yes=True) == 1
    assert "holds no command that a NaNGuard wrote" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="report.json is not the report of a step that NaN"):
        replay.replay(trainer, path)


def test_train_replays_the_step_and_exits_if_the_variable_is_set(
    stopped, tmp_path, capsys, monkeypatch
):
    trainer, path = stopped
    monkeypatch.setenv(REPLAY_VARIABLE, str(path))
    with pytest.raises(SystemExit) as e:
        trainer.train(rows([4.0, 3.0], 2), steps=5)
    assert e.value.code == 0
    assert capsys.readouterr().out == (path / "replay.txt").read_text()


def test_a_notebook_is_not_started_again(tmp_path, monkeypatch, capsys):
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    with pytest.raises(NonFiniteLossError):
        _trainer(tmp_path).train(rows([-1.0], 1), steps=1)
    monkeypatch.setattr(replay_command, "run_script", None)
    assert replay_command.main(tmp_path) == 1
    err = capsys.readouterr().err
    assert "a notebook, a prompt" in err
    assert f"tfloss.replay.replay(trainer, '{tmp_path}/nonfinite/step_00000001')" in err


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, np.nan, -np.inf, np.inf], "float32 [4], 1 NaN, 2 infinite, the others from 1 to 1"),
        ([np.nan], "float32 [1], 1 NaN"),
        ([], "float32 [0]"),
        (["a"], "string [1]"),
        ([[2, 3]], "int32 [1, 2], all finite, from 2 to 3"),
    ],
)
def test_a_tensor_is_described_in_one_line(values, expected):
    assert replay._describe(tf.constant(values)) == expected


@pytest.mark.slow
def test_the_module_is_available_without_an_import():
    code = "import tfloss, sys; assert 'tensorflow' not in sys.modules; tfloss.replay.replay"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
