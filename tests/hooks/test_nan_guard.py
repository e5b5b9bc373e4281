import json
import sys

import keras
import pytest
import tensorflow as tf

import tfloss
from tests.toys import Line, rows
from tfloss.errors import NonFiniteLossError
from tfloss.hooks import NaNGuard

# The loss is the square root of the mean of y = x: NaN in the second batch.
DATA = rows([1.0, 4.0, -1.0, -7.0], 2)


def _fail(**options):
    """Trains until the guard stops it, and returns trainer and error."""
    model = Line(lambda model, batch, y: {"root": tf.sqrt(tf.reduce_mean(y))})
    trainer = tfloss.Trainer(
        model, keras.optimizers.SGD(0.0), jit=False, default_hooks=False, hooks=[NaNGuard()],
        **options,
    )  # fmt: skip
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.train(DATA, steps=5)
    return trainer, caught.value


def test_the_error_names_the_step_and_the_loss(tmp_path):
    trainer, error = _fail(workdir=tmp_path)
    assert error.step == 2 and list(error.losses) == ["root", "total"]
    assert trainer.step == 1  # the bad update is not applied


def test_batch_and_command_are_saved_for_a_replay(tmp_path):
    _, error = _fail(workdir=tmp_path)
    saved = tmp_path / "nonfinite" / "step_00000002"
    batch = tf.data.Dataset.load(str(saved / "batch_0")).get_single_element()
    assert batch["x"].numpy().tolist() == [-1.0, -7.0]
    report = json.loads((saved / "report.json").read_text())
    assert (report["step"], report["replicas"], report["micro_batches"]) == (2, 1, 1)
    assert report["losses"] == {"root": "nan", "total": "nan"}
    assert report["command"][0] == sys.executable
    (note,) = error.__notes__
    assert f"Its batch is in {saved}." in note and f"tfloss replay {tmp_path}" in note


def test_without_a_workdir_the_error_says_how_to_keep_the_batch():
    _, error = _fail()
    (note,) = error.__notes__
    assert "give the Trainer a workdir, which keeps the batch" in note


def test_other_errors_save_nothing(make_trainer, tmp_path):
    def fail(step):
        raise RuntimeError("a bug")

    make_trainer([NaNGuard()], workdir=tmp_path, on_step=fail).train(1)
    assert not [*tmp_path.iterdir()]
