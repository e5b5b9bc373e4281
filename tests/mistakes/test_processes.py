"""An error of the model is short in scripts of `tfloss.app`, on several replicas and workers."""

import re
import subprocess
import sys

import pytest

from tests.mistakes.test_mistakes import LINES

SCRIPT = """
import tfloss
from tfloss import app


def main(run):
    import keras
    import tensorflow as tf

    class Net(keras.Model):
        def __init__(self):
            super().__init__(name="net")
            self.dense = keras.layers.Dense(3)

        def call(self, batch, training=False):
            if training or FAULT == "train":
                return tf.reduce_mean(self.dense(batch["x"]) - batch[KEY["train"]])  # in training
            return self.dense(batch["x"]) - batch[KEY["evaluate"]]  # in evaluation

    batch = {"x": tf.ones([8, 4]), "y": tf.ones([8, 1])}
    data = tf.data.Dataset.from_tensors(batch)
    with run.strategy.scope():
        trainer = run.trainer(Net(), keras.optimizers.SGD(0.1))
    error = tfloss.metric(keras.metrics.Mean(), lambda batch, predictions: predictions)
    run.train_and_evaluate(
        trainer, data.repeat(), data, {"mean": error}, steps=2, every=tfloss.Every(steps=2)
    )


if __name__ == "__main__":
    app.run(main)
"""


CONFIG = "import ml_collections\n\n\ndef get_config():\n    return ml_collections.ConfigDict()\n"


def script(folder, fault):
    """Writes a script that reads a missing key.

    Returns:
      Its path with its flags, and the number of the line.
    """
    (folder / "config.py").write_text(CONFIG)
    keys = {"train": "y", "evaluate": "y", fault: "label"}
    text = SCRIPT.replace("\nimport tfloss", f"\nFAULT, KEY = {fault!r}, {keys}\nimport tfloss", 1)
    path = folder / "train.py"
    path.write_text(text)
    mark = {"train": "# in training", "evaluate": "# in evaluation"}[fault]
    flags = f"--config={folder / 'config.py'}", f"--workdir={folder / 'run'}"
    return (path, *flags), next(
        i for i, one in enumerate(text.splitlines(), 1) if one.endswith(mark)
    )


def check(lines, number):
    """Checks what Python prints of the error."""
    begin = max(i for i, line in enumerate(lines) if line.startswith("Traceback"))
    answer = lines[begin:]
    text = "\n".join(answer)
    assert len(answer) <= LINES, text
    assert "train.py" in answer[1] and f"line {number}" in text, text
    assert "label" in text and "The batch has" in text, text
    assert "/tfloss/" not in text and "site-packages" not in text and "\x1b" not in text, text


def failed(command):
    """Runs a command that fails. Returns the lines of its standard error."""
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode != 0
    return done.stderr.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("fault", ["train", "evaluate"])
def test_a_script(fault, replicas, tmp_path):
    command, number = script(tmp_path, fault)
    flags = ["--strategy=mirrored", "--replicas=2"] if replicas == 2 else []
    check(failed([sys.executable, *command, *flags]), number)


@pytest.mark.slow
def test_two_workers(tmp_path):
    command, number = script(tmp_path, "train")
    launch = [sys.executable, "-m", "tfloss.cli", "launch", "--workers=2", "--", sys.executable]
    lines = failed([*launch, *command, "--strategy=multi_worker"])
    check([re.sub(r"^\[0\] ", "", one) for one in lines if one[:3] == "[0]"], number)
