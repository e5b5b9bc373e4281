"""`tfloss lr-range`: its choices, picture and errors, and a whole script whose workdir stays."""

import json
import sys

import pytest

from tfloss import cli
from tfloss.app.lr_range_command import choices, described

FOUND = {
    "rates": [0.001, 0.01, 0.1, 1.0, 10.0],
    "losses": [5.0, 4.5, 2.0, 1.5, 30.0],
    "smoothed": [5.0, 4.5, 2.0, 1.5, 9.0],
    "diverged": True,
}
STUB = f"""
import json, os
asked = json.loads(os.environ["TFLOSS_LR_RANGE"])
assert asked["low"] == 0.001 and asked["high"] == 10.0 and asked["steps"] == 50
open(asked["file"], "w").write({json.dumps(FOUND)!r})
"""
SCRIPT = """
import keras, tensorflow as tf, tfloss
from tfloss import app

class Model(keras.Model):
    def __init__(self):
        super().__init__()
        self.w = self.add_weight(name="w", shape=(), initializer="ones")
    def call(self, batch, training=False):
        return (self.w * batch["x"] - 3.0) ** 2

def main(run):
    with run.strategy.scope():
        model, optimizer = Model(), keras.optimizers.SGD(0.1)
    data = tf.data.Dataset.from_tensors({"x": 1.0}).repeat()
    run.trainer(model, optimizer).train(data, run.config.steps, hooks=run.hooks())
    raise AssertionError("the script went on")

app.run(main)
"""


def test_the_rates_to_choose_from():
    assert choices(FOUND) == {"steepest descent": 0.01, "a tenth of the lowest loss": 0.1}
    assert "to 10 in 5 updates, where the loss diverged" in described(FOUND)
    flat = {**FOUND, "smoothed": [1.0, 1.0, 2.0, 3.0, 4.0]}
    assert choices(flat) == {}
    assert "did not fall" in described(flat)
    assert "first step" in described({**FOUND, "rates": [], "smoothed": []})


def test_the_picture_and_the_numbers(tmp_path, capfd):
    png = tmp_path / "new" / "curve.png"
    ramp = ["--from", "0.001", "--to", "10", "--steps", "50", "--png", str(png)]
    assert cli.main(["lr-range", *ramp, "--", sys.executable, "-c", STUB]) == 0
    assert png.read_bytes().startswith(b"\x89PNG")
    assert json.loads(png.with_suffix(".json").read_text()) == FOUND
    assert "steepest descent: 0.01; a tenth of the lowest loss: 0.1" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--from", "1", "--to", "0.1", "--", "true"], 2, "--from must be positive, and less"),
        ([], 2, "the command is missing"),
        (["--", "/no/such/program"], 2, "the command could not be started"),
        (["--", "sh", "-c", "exit 3"], 3, "exit code 3, and no trainer.train"),
        (["--", "true"], 1, "exit code 0, and no trainer.train"),
    ],
)
def test_errors(arguments, code, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["lr-range", *arguments]) == code
    assert text in capsys.readouterr().err


@pytest.mark.slow
def test_a_script_whose_workdir_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "config.py").write_text(
        "from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({'steps': 5})\n"
    )
    workdir = tmp_path / "run"
    command = [sys.executable, "train.py", "--config=config.py", f"--workdir={workdir}"]
    assert cli.main(["lr-range", "--from", "0.001", "--steps", "30", "--", *command]) == 0
    found = json.loads((tmp_path / "lr_range.json").read_text())
    assert found["diverged"]
    assert found["losses"][0] == 4.0
    assert found["losses"][1] == pytest.approx((1.0 + 0.001 * 4.0 - 3.0) ** 2, rel=1e-4)
    assert not workdir.exists()
