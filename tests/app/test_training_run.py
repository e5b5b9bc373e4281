"""What `Run` makes of the flags."""

import pytest
import tensorflow as tf

from tfloss import app
from tfloss.app.config import write_config

# ml_collections loads a config in a way that Python 3.11 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def _run(parse, *arguments):
    return app.prepare(parse("--mode=train", *arguments))


def test_max_steps_only_shortens(parse):
    assert _run(parse).steps(100) == 100
    assert _run(parse, "--max_steps=30").steps(100) == 30
    assert _run(parse, "--max_steps=300").steps(100) == 100


def test_overfit_repeats_the_first_batches_unchanged(parse):
    drawn = tf.data.Dataset.random(seed=1).batch(2)
    few = _run(parse, "--overfit_batches=3").overfit(drawn)

    batches = [tuple(batch) for batch in few.take(7).as_numpy_iterator()]

    assert batches[:3] == batches[3:6]
    assert batches[6] == batches[0]
    assert len(set(batches)) == 3
    assert _run(parse).overfit(drawn) is drawn


def test_hooks_of_flags(parse):
    profile, limit = _run(parse, "--profile=100:110", "--max_minutes=30").hooks()

    assert (profile.start, profile.stop) == (100, 110)
    assert limit.minutes == 30
    assert _run(parse).hooks() == []


def test_where_lists_what_exists(parse, tmp_path):
    run = _run(parse)
    workdir = tmp_path / "run"
    assert run.where() == ""  # the first step writes the config
    write_config({}, workdir)
    for name in ("export", "export_step_1000", "export_step_300", "train", "nonfinite"):
        (workdir / name).mkdir()

    assert run.where().splitlines() == [
        f"config      {workdir}/config.json",
        f"export      {workdir}/export",
        f"export      {workdir}/export_step_300",
        f"export      {workdir}/export_step_1000",
        f"nonfinite   {workdir}/nonfinite  (tfloss replay {workdir})",
        f"curves      tensorboard --logdir {workdir}",
    ]


def test_a_trainer_has_the_values_of_the_flags_unless_overridden(parse, tmp_path):
    run = _run(parse)
    model, optimizer = tf.keras.Sequential([tf.keras.layers.Dense(1)]), tf.keras.optimizers.SGD()
    trainer = run.trainer(model, optimizer, clip_norm=2.0)
    assert (trainer.workdir, trainer.strategy) == (run.workdir, run.strategy)
    assert run.trainer(model, optimizer, workdir=tmp_path / "other").workdir == tmp_path / "other"


def test_results_are_printed_in_one_line(parse, capsys):
    _run(parse).report({"accuracy": 0.98125, "coco/box/AP": 0.5, "error": 274.4434, "tiny": 1.2e-7})
    printed = capsys.readouterr().out
    assert printed == (
        "val/accuracy 0.98125  val/coco/box/AP 0.5  val/error 274.44  val/tiny 1.2e-07\n"
    )
