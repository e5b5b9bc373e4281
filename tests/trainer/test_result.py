"""The result of a run holds its losses, and nothing that is only named like one."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tests.toys import Line, rows
from tfloss.hooks import Evaluate, Every
from tfloss.trainer.result import TrainResult


def report(model, batch, y):
    tfloss.summary.scalar("losses/raw", tf.reduce_max(y), every_step=True)
    return {"b": tf.reduce_mean(y), "a": 2.0 * tf.reduce_mean(y)}


def test_a_summary_that_is_named_like_a_loss_is_none():
    trainer = tfloss.Trainer(Line(report), keras.optimizers.SGD(0.0), default_hooks=False)
    result = trainer.train(rows(np.ones(8), 4), 3)
    assert list(result.losses.items()) == [("b", 1.0), ("a", 2.0), ("total", 3.0)]
    assert result.step == 3 and result.reason is None


def test_without_a_step_there_are_no_losses():
    data = rows(np.ones(8), 4)
    trainer = tfloss.Trainer(Line(report), keras.optimizers.SGD(0.0), default_hooks=False)
    trainer.train(data, 3)
    assert trainer.train(data, 3).losses == {}


def test_a_result_draws_itself():
    pytest.importorskip("matplotlib")
    evaluate = Evaluate(rows([1.0], 1).take(1), {}, losses=True, every=Every(steps=2))
    trainer = tfloss.Trainer(
        Line(), keras.optimizers.SGD(0.1), hooks=[evaluate], log_every=1, default_hooks=False
    )
    result = trainer.train(rows([1.0, 2.0], 1), 4)
    assert list(result.curves["losses/mean"]) == [1, 2, 3, 4]
    assert list(result.curves["val/losses/mean"]) == [2, 4]
    panels = {axes.get_title(): axes for axes in result.plot().axes}
    assert set(panels) == {"mean", "total"}
    lines = {line.get_label(): line.get_xydata().tolist() for line in panels["mean"].lines}
    assert lines["train"] == [list(one) for one in result.curves["losses/mean"].items()]
    assert [x for x, _ in lines["val"]] == [2, 4]
    page = result._repr_html_()
    assert 'pre-wrap">step 4  mean ' in page and 'src="data:image/png;base64,iVBOR' in page


def test_a_result_without_curves_is_a_line():
    result = TrainResult(3, {"<a>": 1.0}, "why")
    assert result._repr_html_().endswith(">step 3  &lt;a&gt; 1  (why)</div>")
    with pytest.raises(ValueError, match="nothing to plot"):
        result.plot()
