"""A script from its command line to its exit code."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import pytest
import tensorflow as tf

import tfloss
from tests.toys import Line, rows
from tfloss import app
from tfloss.trainer.workdir import write_deferred

# ml_collections loads a config in a way that Python 3.11 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

ROOT = Path(__file__).parents[2]


def test_prepare_seeds_and_saves_the_config(parse, tmp_path, capsys):
    run = app.prepare(parse("--seed=5", "--strategy=mirrored", "--replicas=2"))
    first = tf.random.uniform([]).numpy()
    again = app.prepare(parse("--seed=5", "--mode=eval"))
    assert os.listdir(tmp_path / "run") == []  # nothing is trained yet
    write_deferred(run.workdir)

    assert run.strategy.num_replicas_in_sync == 2
    assert again.strategy.num_replicas_in_sync == 1
    assert run.seed == 5
    assert tf.random.uniform([]).numpy() == first
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == {
        "steps": 100,
        "smooth": False,
        "optimizer": {"name": "adam", "learning_rate": 0.001},
        "--seed": 5,
        "--strategy": "mirrored",
        "--replicas": 2,
        "--jit": None,
        "--deterministic": False,
        "--overfit_batches": None,
        "--max_steps": None,
    }
    assert os.listdir(tmp_path / "run") == ["config.json"]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("flag", ["--help", "--helpfull", "--helpshort"])
def test_help_is_no_failure(flag, capsys):
    with pytest.raises(SystemExit) as ending:
        app.run(print, argv=["train.py", flag])
    assert ending.value.code == 0
    assert "--[no]deterministic" in capsys.readouterr().out


def test_changes_of_the_config_are_reported(parse, tmp_path, capsys):
    write_deferred(app.prepare(parse()).workdir)
    run = app.prepare(parse("--config.optimizer.learning_rate=3e-4", "--config.steps=200"))

    file = tmp_path / "run" / "config.json"
    assert capsys.readouterr().err == (
        f"tfloss: The config differs from {file}. The new values apply:\n"
        "  steps: 100 -> 200\n"
        "  optimizer.learning_rate: 0.001 -> 0.0003\n"
    )
    assert json.loads(file.read_text())["steps"] == 100  # of what was trained
    write_deferred(run.workdir)
    assert json.loads(file.read_text())["steps"] == 200


def test_changes_of_the_flags_are_reported(parse, tmp_path, capsys):
    first = app.prepare(parse("--max_steps=50", "--strategy=mirrored", "--replicas=2"))
    write_deferred(first.workdir)
    app.prepare(parse("--seed=3", "--overfit_batches=1", "--strategy=mirrored", "--replicas=4"))

    assert capsys.readouterr().err.splitlines()[1:] == [
        "  --seed: 0 -> 3",
        "  --replicas: 2 -> 4",
        "  --overfit_batches: null -> 1",
        "  --max_steps: 50 -> null",
    ]


def test_evaluation_reports_changes_and_does_not_save_them(parse, tmp_path, capsys):
    write_deferred(app.prepare(parse()).workdir)
    run = app.prepare(parse("--mode=eval", "--config.steps=200"))

    assert "steps: 100 -> 200" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "config.json").read_text())["steps"] == 100
    assert (run.trains, run.evaluates) == (False, True)


def test_the_config_says_what_was_trained(parse, tmp_path):
    """A run that fails before its first step doesn't change it, nor one without a step to do."""
    saved = tmp_path / "run" / "config.json"

    def train(steps, report=None):
        run = app.prepare(parse(f"--config.steps={steps}"))
        trainer = run.trainer(
            Line(report), keras.optimizers.SGD(0.1), default_hooks=False, jit=False
        )
        trainer.train(rows([1.0], 1), run.config.steps, hooks=[tfloss.hooks.SaveCheckpoint()])
        return json.loads(saved.read_text())["steps"]

    def fail(model, batch, y):
        raise RuntimeError("a bug in the model")

    with pytest.raises(RuntimeError, match="a bug"):
        train(5, fail)
    assert not saved.exists()
    assert train(2) == 2
    with pytest.raises(RuntimeError, match="a bug"):
        train(5, fail)
    assert json.loads(saved.read_text())["steps"] == 2
    assert train(1) == 2  # step 2 is reached already
    assert train(3) == 3
    manifest = json.loads((tmp_path / "run/checkpoints/step_00000003/manifest.json").read_text())
    assert manifest["extra"]["config"]["steps"] == 3


@pytest.mark.parametrize("mode", ["eval", "export"])
def test_evaluation_and_export_need_a_run(parse, mode, tmp_path):
    with pytest.raises(ValueError, match=f"--mode={mode} needs a trained run.*{tmp_path}/run"):
        app.prepare(parse(f"--mode={mode}"))


def test_an_unwritable_workdir_is_named(parse, tmp_path):
    (tmp_path / "run").write_text("a file")

    with pytest.raises(
        ValueError,
        match=f"workdir '{tmp_path}/run' can't be written to: .* must be a directory",
    ):
        app.prepare(parse())


def test_a_broken_saved_config_is_named(parse, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{")

    with pytest.raises(ValueError, match="config.json is not a config that tfloss saved"):
        app.prepare(parse())


SCRIPT = """
import sys
import types

# The test is about tfloss.app alone, not about `import tfloss`.
package = types.ModuleType("tfloss")
package.__path__ = [sys.argv.pop()]
sys.modules["tfloss"] = package

from tfloss import app

def main(run):
    import tensorflow as tf
    tf.debugging.set_log_device_placement(False)
    print(run.strategy.num_replicas_in_sync, run.config.steps, tf.ones([]).numpy())
    return "not an exit code"

try:
    app.run(main)
finally:
    print("tensorflow" in sys.modules)
"""


def _script(tmp_path, *arguments):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.run(
        [sys.executable, str(script), *arguments, str(ROOT / "tfloss")],
        capture_output=True,
        text=True,
        env=environment,
        timeout=100,
    )


def test_a_typo_ends_the_script_before_tensorflow_is_imported(tmp_path):
    done = _script(tmp_path, "--workdri=x")

    assert done.returncode == 2
    assert done.stderr == "train.py: Unknown flag --workdri. Did you mean --workdir?\n"
    assert done.stdout == "False\n"


@pytest.mark.slow
def test_a_script_runs_quietly(recipe, tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    done = _script(tmp_path, f"--config={recipe}", workdir, "--strategy=mirrored", "--replicas=2")

    noise = re.sub(r"importing TensorFlow \d:\d\d\n", "", done.stderr)  # on a busy machine
    assert (done.returncode, noise, done.stdout) == (0, "", "2 100 1.0\nTrue\n")


INTERRUPTED = """
import os
import time

import keras
import tensorflow as tf

import tfloss
from tfloss import app

class Slope(keras.Model):
    def __init__(self):
        super().__init__()
        self.w = self.add_weight(name="w", shape=())

    def call(self, batch, training=False):
        return tf.reduce_mean((self.w * batch - 1.0) ** 2)

class Tell(tfloss.Hook):
    every = tfloss.Every(steps=3)

    def after_step(self, step):
        print("going", flush=True)
        time.sleep(60 if os.environ.get("SLOW") == "hook" else 0)

    def after_train(self):
        if os.environ.get("SLOW") == "end":
            print("ending", flush=True)
            time.sleep(60)

def main(run):
    data = tf.data.Dataset.from_tensors(tf.ones([4])).repeat()
    trainer = tfloss.Trainer(
        Slope(), keras.optimizers.SGD(0.1), workdir=run.workdir, hooks=[Tell(), *run.hooks()],
        steps_per_call=1,
    )
    trainer.train(data, run.config.steps)

app.run(main)
"""


@pytest.fixture
def interrupted(recipe, tmp_path):
    """Starts the script: `interrupted(steps, *flags, slow=...)` gives the process."""
    script = tmp_path / "train.py"
    script.write_text(INTERRUPTED)

    def start(steps, *flags, slow=""):
        workdir = f"--workdir={tmp_path / 'run'}"
        command = [sys.executable, str(script), f"--config={recipe}", workdir]
        return subprocess.Popen(
            [*command, f"--config.steps={steps}", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "SLOW": slow},
        )

    return start


def _press(process):
    """Sends Ctrl-C; the message about it comes before a hook ends that takes a minute."""
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    line = next(line for line in process.stderr if "Ctrl-C" in line)
    assert time.monotonic() - began < 20
    assert re.fullmatch(
        r"tfloss: Ctrl-C at step \d+: finishing the step and the hooks that are due, then "
        r"saving a checkpoint; press Ctrl-C again to exit at once.\n",
        line,
    )


@pytest.mark.slow
def test_control_c_ends_a_script_and_names_the_newest_checkpoint(interrupted, tmp_path):
    with interrupted(1000000000) as process:
        assert process.stdout.readline() == "going\n"
        _press(process)
        _, err = process.communicate(timeout=60)

    (saved_at,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert process.returncode == 130
    assert err.splitlines()[-1] == (
        f"train.py: interrupted; the newest checkpoint is {saved_at}. "
        "Run the same command to resume from it."
    )
    assert "Traceback" not in err
    step = int(saved_at.name.removeprefix("step_"))
    with interrupted(step + 2) as again:
        _, err = again.communicate(timeout=100)
    assert f"resuming at step {step} from" in err


@pytest.mark.slow
@pytest.mark.parametrize(("slow", "sign"), [("hook", "going\n"), ("end", "ending\n")])
def test_a_second_control_c_does_not_wait_for_hooks(interrupted, slow, sign):
    with interrupted(1000000000, slow=slow) as process:
        assert process.stdout.readline() == "going\n"
        _press(process)
        if slow == "end":
            assert next(line for line in process.stdout if line != "going\n") == sign
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert time.monotonic() - began < 20  # on a busy machine
    assert process.returncode == 130
    assert "Traceback" not in err and "interrupted" in err


@pytest.mark.slow
def test_max_minutes_saves_a_checkpoint_and_exits_with_124(interrupted, tmp_path):
    with interrupted(1000000000, "--max_minutes=0.02") as process:
        _, err = process.communicate(timeout=100)
    assert process.returncode == 124 and "Traceback" not in err, err
    step = int(re.search(r"0.02 minutes are over at step (\d+)\. Saving", err)[1])
    (saved_at,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert saved_at.name == f"step_{step:08d}"
    with interrupted(step + 2, "--max_minutes=10") as again:
        _, err = again.communicate(timeout=100)
    assert again.returncode == 0 and f"resuming at step {step} from" in err, err


@pytest.mark.parametrize(
    ("mode", "left"),
    [
        (
            "train",
            " before the first checkpoint in {}. The same command starts from the beginning.",
        ),
        ("eval", ". Run the same command to start again."),
    ],
)
def test_control_c_before_the_first_checkpoint(recipe, tmp_path, capsys, mode, left):
    workdir = tmp_path / "run"
    workdir.mkdir()

    def main(run):
        raise KeyboardInterrupt

    argv = ["train.py", f"--config={recipe}", f"--workdir={workdir}", f"--mode={mode}"]
    with pytest.raises(SystemExit) as ended:
        app.run(main, argv=argv)

    assert ended.value.code == 130
    assert capsys.readouterr().err.endswith(f": interrupted{left.format(workdir)}\n")
