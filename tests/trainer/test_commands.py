"""What the environment asks for is done in place of training."""

import json

import keras
import pytest

import tfloss
from tests.toys import Line, rows
from tfloss.common.command_variables import INSPECT_VARIABLE


def test_a_dry_run_reports_trains_evaluates_and_ends(tmp_path, monkeypatch, capsys):
    data = rows([[1.0], [2.0], [3.0], [4.0]], 2)
    report, page = tmp_path / "report.json", tmp_path / "report.html"
    asked = {"dry_run": True, "report": str(report), "html": str(page)}
    monkeypatch.setenv(INSPECT_VARIABLE, json.dumps(asked))
    mean = tfloss.metric(keras.metrics.Mean(), lambda batch, y: (y["y"],))
    hooks = [tfloss.hooks.Evaluate(data.take(2), {"mean": mean}, losses=True)]
    trainer = tfloss.Trainer(Line(), keras.optimizers.SGD(0.1), workdir=tmp_path / "run")
    with pytest.raises(SystemExit) as ending:
        trainer.train(data, steps=10, hooks=hooks)
    assert ending.value.code == 0 and trainer.step == 0
    shown = capsys.readouterr().out
    # A batch of [1, 2]. The loss is 1.5 w, so that a step makes w = 1 - 0.1 * 1.5.
    assert "One training step was made\n  mean 1.5\n  total 1.5\n" in shown
    assert "One batch of 'val' was evaluated\n  val/mean 1.275\n  val/losses/mean 1.275\n" in shown
    assert json.loads(report.read_text())["losses"][0]["name"] == "mean"
    assert "<h1>line before training</h1>" in page.read_text()
    assert list((tmp_path / "run").iterdir()) == []
    with pytest.raises(SystemExit):
        trainer.train(data, steps=10)
    assert "No batch is evaluated" in capsys.readouterr().out


def _fail(*arguments):
    raise RuntimeError("the fault")


@pytest.mark.parametrize(
    "faulty",
    [
        lambda data: tfloss.hooks.Evaluate(
            data.take(1), {"mean": tfloss.metric(keras.metrics.Mean(), _fail)}
        ),
        lambda data: tfloss.hooks.ExportBest("losses/total", export=_fail),
        lambda data: tfloss.hooks.LogPredictions("found", data.take(1), _fail),
    ],
    ids=["evaluation", "export", "drawing"],
)
def test_a_dry_run_meets_the_faults_of_later_hours(faulty, tmp_path, monkeypatch):
    monkeypatch.setenv(INSPECT_VARIABLE, json.dumps({"dry_run": True}))
    data = rows([[1.0], [2.0]], 2)
    trainer = tfloss.Trainer(Line(), keras.optimizers.SGD(0.1), workdir=tmp_path)
    with pytest.raises((RuntimeError, tfloss.errors.MetricError), match="the fault"):
        trainer.train(data, steps=10, hooks=[faulty(data)])


def test_a_dry_run_names_a_loss_that_is_not_finite(monkeypatch):
    monkeypatch.setenv(INSPECT_VARIABLE, json.dumps({"dry_run": True}))
    trainer = tfloss.Trainer(Line(), keras.optimizers.SGD(0.1))
    with pytest.raises(tfloss.errors.NonFiniteLossError, match="mean"):
        trainer.train(rows([[float("nan")]], 1), steps=10)
