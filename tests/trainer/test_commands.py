"""What the environment asks for is done in place of training."""

import json

import keras
import pytest

import tfloss
from tests.toys import Line, rows
from tfloss.common.command_variables import INSPECT_VARIABLE


def test_a_dry_run_reports_evaluates_one_batch_and_ends(tmp_path, monkeypatch, capsys):
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
    assert "val/mean 1.5\n" in shown and "val/losses/mean 1.5\n" in shown  # of [1, 2], with w = 1
    assert json.loads(report.read_text())["losses"][0]["name"] == "mean"
    assert "<h1>line before training</h1>" in page.read_text()
    assert [one.name for one in (tmp_path / "run").iterdir()] == [".lock"]  # held by this process
    with pytest.raises(SystemExit):
        trainer.train(data, steps=10)
    assert "No batch is evaluated" in capsys.readouterr().out
    monkeypatch.delenv(INSPECT_VARIABLE)
    assert trainer.train(data, steps=1).step == 1
