"""`tfloss inspect` runs a script as far as train(), which reports and trains nothing."""

import json
import subprocess
import sys
import textwrap

import pytest

from tfloss.app import inspect_command

SCRIPT = """
import keras, numpy as np, tensorflow as tf, tfloss

class Net(keras.Model):
    def __init__(self):
        super().__init__(name="net")
        self.dense = keras.layers.Dense(3)
        self.norm = keras.layers.BatchNormalization()
        self.only = keras.layers.Dense(2, name="only")

    def build(self, shape):
        self.only.build((None, 3))
        self.built = True

    def call(self, batch, training=False):
        y = self.dense(batch["x"])
        z = self.norm(y)  # synchronized
        if not training:
            return self.only(z)  # only
        noise = tf.random.normal([3])  # stateful
        frozen = np.random.uniform()  # frozen
        kept = tf.boolean_mask(y, y[:, 0] > 0)  # dynamic
        tf.strings.as_string(y)  # strings
        return {
            "ctc": tf.reduce_sum(y ** 2),  # global_sum
            "masked": tf.reduce_sum(y[:, 0] * batch["m"]) / tf.reduce_sum(batch["m"]),  # global_mean
            "normed": tf.reduce_mean(tf.abs(z) ** 3),
            "others": tf.reduce_mean(y + 1e-9 * noise) * frozen + 1e-9 * tf.reduce_sum(kept),
        }

keras.utils.set_random_seed(0)
x = np.random.normal(size=[32, 4]).astype("float32")
m = (np.arange(32) % 8 < 5).astype("float32")
data = tf.data.Dataset.from_tensor_slices({"x": x, "m": m}).batch(8).repeat()
strategy = tfloss.make_strategy()
with strategy.scope():
    model, optimizer = Net(), keras.optimizers.Adam(0.1)
trainer = tfloss.Trainer(model, optimizer, strategy=strategy, workdir="run")
size = tfloss.metric(keras.metrics.Mean(), lambda batch, y: (tf.abs(y),))
trainer.train(data, steps=100, hooks=[tfloss.hooks.Evaluate(data.take(3), {"size": size})])
print("it has trained")
"""  # noqa: E501


def _inspect(folder, *arguments):
    (folder / "train.py").write_text(textwrap.dedent(SCRIPT))
    command = [sys.executable, "-m", "tfloss.cli", "inspect", *arguments, "--"]
    return subprocess.run(
        [*command, sys.executable, "train.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.slow
def test_eight_planted_faults_are_named_with_file_and_line(tmp_path):
    done = _inspect(tmp_path, "--replicas=2", "--json=found.json", "--html=found.html")
    assert done.returncode == 0, done.stderr
    assert "it has trained" not in done.stdout and "Findings: " in done.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["replicas"] == 2 and "<h2>Findings" in (tmp_path / "found.html").read_text()
    lines = SCRIPT.splitlines()
    named = {(one["kind"], one["line"].rpartition(", in")[0]) for one in found["findings"]}

    def at(comment):
        number = next(i for i, text in enumerate(lines, 1) if text.endswith(f"# {comment}"))
        return f"train.py:{number}"

    changes = "Loss that changes with the number of replicas"
    assert {
        (changes, at("global_sum")),
        (changes, at("global_mean")),
        (changes, at("synchronized")),
        ("Layer that only inference uses", at("only")),
        ("State that no checkpoint holds", at("stateful")),
        ("Random numbers that are drawn once", at("frozen")),
        ("Shape that depends on values", at("dynamic")),
        ("Op that XLA can't compile", at("strings")),
    } <= named
    cures = " ".join(one["cure"] for one in found["findings"])
    assert all(cure in cures for cure in ("global_sum", "global_mean", "synchronized=True"))
    assert {one.name for one in (tmp_path / "run").iterdir()} <= {".lock"}


@pytest.mark.slow
def test_a_dry_run_evaluates_one_batch_and_writes_nothing(tmp_path):
    done = _inspect(tmp_path, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "One batch of 'val' was evaluated\n  val/size " in done.stdout
    assert "it has trained" not in done.stdout and "Findings: " in done.stdout
    assert {one.name for one in (tmp_path / "run").iterdir()} <= {".lock"}


def test_a_command_that_does_not_train_is_told(tmp_path, capfd):
    silent = [sys.executable, "-c", "pass"]
    assert inspect_command.main(silent) == 1
    assert "no trainer.train(...) in it was reached" in capfd.readouterr().err
    assert inspect_command.main(["no-such-program-here"]) == 2
    assert "could not be started" in capfd.readouterr().err
    assert inspect_command.main(["bash", "run.sh"], replicas=2) == 2
    assert "Write the command as python train.py" in capfd.readouterr().err
