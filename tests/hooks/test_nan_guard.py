import json
import math
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.toys import Line, rows
from tfloss.errors import CheckpointError, NonFiniteLossError
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
    assert report["losses"] == {"root": "nan", "total": "nan"} and report["gradients"] == []
    assert report["command"][0] == sys.executable
    (note,) = error.__notes__
    assert f"Its batch is in {saved}." in note and f"tfloss replay {tmp_path}" in note


def test_nan_in_the_data_are_named_by_tensor_and_count():
    data = tf.data.Dataset.from_tensors(
        {
            "numbers": tf.constant([[1.0, math.nan], [2.0, 3.0]]),
            "words": tf.ragged.constant([[math.inf, 1.0], []]),
            "x": tf.constant([1.0, 2.0]),
            "id": tf.constant([1, 2]),
            "half": tf.constant([math.inf, 2.0], tf.bfloat16),
        }
    ).repeat()
    model = Line(lambda model, batch, y: {"error": tf.reduce_mean(y[:, None] * batch["numbers"])})
    trainer = tfloss.Trainer(model, keras.optimizers.SGD(0.1), jit=False)
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.train(data, steps=1)
    note = caught.value.__notes__[0]
    assert "NaN or infinite values: 'half' (1 of 2), 'numbers' (1 of 4), 'words' (1 of 2)." in note


def test_the_evidence_of_the_same_step_is_replaced_and_other_files_stay(tmp_path):
    saved = tmp_path / "nonfinite" / "step_00000002"
    (saved / "batch_0").mkdir(parents=True)
    (saved / "batch_0/thesis.txt").write_text("mine")
    (saved / "report.json").write_text("mine")
    for _ in range(2):
        _fail(workdir=tmp_path)
        batch = tf.data.Dataset.load(str(saved / "batch_0")).get_single_element()
        assert batch["x"].numpy().tolist() == [-1.0, -7.0]
        assert json.loads((saved / "report.json").read_text())["step"] == 2
        names = ["batch_0", "report.json", "state"]
        names += ["superseded.batch_0", "superseded.report.json"]
        assert sorted(path.name for path in saved.iterdir()) == names
    assert (saved / "superseded.batch_0/thesis.txt").read_text() == "mine"
    assert (saved / "superseded.report.json").read_text() == "mine"


def test_without_a_workdir_the_error_says_how_to_keep_the_batch():
    _, error = _fail()
    (note,) = error.__notes__
    assert "give the Trainer a workdir, which keeps the batch" in note


def test_other_errors_save_nothing(make_trainer, tmp_path):
    def fail(step):
        raise RuntimeError("a bug")

    make_trainer([NaNGuard()], workdir=tmp_path, on_step=fail).train(1)
    assert not [*tmp_path.iterdir()]


def _slope(model, batch, y):
    """Finite, also where y = 0; there the gradient is NaN, and the next loss 0."""
    return {"entropy": tf.reduce_mean(tf.where(y > 0.0, tf.math.log(y), 0.0))}


@pytest.mark.promise(32)
@pytest.mark.parametrize("jit", [False, True, "loop"])
def test_a_gradient_that_is_not_finite_stops_training_by_default(tmp_path, jit):
    trainer = tfloss.Trainer(
        Line(_slope), keras.optimizers.SGD(0.1), jit=jit, workdir=tmp_path, ema=0.9
    )
    with pytest.raises(NonFiniteLossError, match="of loss 'entropy' for 'line/w'"):
        trainer.train(rows([1.0, 1.0, 0.0, 1.0], 2), steps=6)
    # d/dw mean(log(w x)) = 1 / w.
    assert trainer.model.w.numpy() == pytest.approx(0.9) and trainer.step == 1
    saved = tmp_path / "nonfinite" / "step_00000002"
    report = json.loads((saved / "report.json").read_text())
    assert report["gradients"] == ["of loss 'entropy' for 'line/w' (optimizer group 'optimizer')"]
    batch = tf.data.Dataset.load(str(saved / "batch_0")).get_single_element()
    assert batch["x"].numpy().tolist() == [0.0, 1.0]
    found = trainer.evaluate(rows([2.0], 1).take(1), losses=True)
    assert found["losses/entropy"] == pytest.approx(math.log(1.8))


@pytest.mark.promise(33)
def test_without_the_check_no_checkpoint_or_average_hides_bad_weights(tmp_path):
    trainer = tfloss.Trainer(
        Line(_slope), keras.optimizers.SGD(0.1), hooks=[NaNGuard(gradients=False)],
        workdir=tmp_path, ema=0.9, jit=False,
    )  # fmt: skip
    data = rows([1.0, 1.0, 0.0, 1.0], 2)
    with (
        pytest.warns(UserWarning, match="Training ended at step 6 with NaN or .* 'line/w'"),
        pytest.raises(
            CheckpointError, match="step 6: NaN or infinite values in 'model/line/w', 'ema/"
        ),
    ):
        trainer.train(data, steps=6)
    assert not [*tmp_path.glob("checkpoints/step_*")]
    with pytest.warns(
        UserWarning, match="The averages have NaN or infinite values in 'ema/line/w'"
    ):
        trainer.evaluate(data.take(1), losses=True, ema=True)


@pytest.mark.promise(32)
@pytest.mark.upstream
def test_upstream_trains_nan_weights_with_a_finite_loss():
    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1, "relu", False, "ones")])
    model.compile(
        keras.optimizers.SGD(0.1),
        loss=lambda y, p: tf.where(p > 0.0, tf.math.log(p), 0.0),
    )
    x = np.array([[0.0], [1.0]])
    history = model.fit(
        x, x, batch_size=2, epochs=3, verbose=0, callbacks=[keras.callbacks.TerminateOnNaN()]
    )
    assert history.history["loss"][-2:] == [0.0, 0.0]  # and it did not terminate
    assert np.isnan(model.get_weights()[0]).all()


@pytest.mark.promise(33)
@pytest.mark.upstream
def test_upstream_saves_weights_that_are_nan(tmp_path):
    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1, use_bias=False)])
    model.compile(keras.optimizers.SGD(np.inf), loss=lambda y, p: p)
    path = tmp_path / "best.weights.h5"
    best = keras.callbacks.ModelCheckpoint(
        path, monitor="loss", save_best_only=True, save_weights_only=True
    )
    model.fit(np.ones([2, 1]), np.ones([2]), batch_size=2, verbose=0, callbacks=[best])
    model.set_weights([np.zeros([1, 1])])
    model.load_weights(path)
    assert np.isinf(model.get_weights()[0]).all()


def test_an_update_that_overflows_is_told_at_the_next_loss_and_not_saved(tmp_path):
    model = Line(lambda model, batch, y: {"mean": tf.reduce_mean(y)})
    trainer = tfloss.Trainer(model, keras.optimizers.SGD(np.inf), workdir=tmp_path, jit=False)
    with pytest.raises(NonFiniteLossError, match="step 2 .*Some of them are not finite: 'line/w'"):
        trainer.train(rows([1.0], 1), steps=5)
    assert not [*tmp_path.glob("checkpoints/step_*")]
