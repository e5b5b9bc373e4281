"""The result of a run holds its losses, and nothing that is only named like one."""

import keras
import numpy as np
import tensorflow as tf

import tfloss
from tests.toys import Line, rows


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
