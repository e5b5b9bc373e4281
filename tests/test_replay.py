import subprocess
import sys
import textwrap

import pytest

from tfloss import replay

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
trainer = tfloss.Trainer(Model(), keras.optimizers.SGD(0.0), workdir="run")
trainer.train(data, steps=100)
"""


def _run(*command, cwd):
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, capture_output=True, text=True, timeout=120
    )


@pytest.mark.slow
def test_a_nan_is_replayed_by_the_command_and_traced_to_its_line(tmp_path):
    (tmp_path / "train.py").write_text(textwrap.dedent(SCRIPT))
    # Dropout(0.5) hides the negative number in some steps; it comes round every 5th.
    first = _run("train.py", cwd=tmp_path)
    assert first.returncode != 0
    assert "NonFiniteLossError" in first.stderr and "tfloss replay run" in first.stderr
    again = _run("-m", "tfloss.cli", "replay", "run", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "in the forward pass" in again.stdout
    assert "Sqrt" in again.stdout
    assert "tf.sqrt(y)  # the culprit" in again.stdout


def test_a_run_without_a_bad_step(tmp_path, capsys):
    assert replay.main(tmp_path) == 1
    assert "no step is kept" in capsys.readouterr().err
