"""A loss that is not finite stops training in every mode, and nothing else does."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.toys import Line, make_step, rows
from tfloss import summary
from tfloss.data.stacked_batches import BatchStacker
from tfloss.engine.engine import Engine
from tfloss.errors import NonFiniteLossError
from tfloss.step.train_step import TrainStep

MODES = ["graph", "step", "loop"]
DATA = rows([4.0, 3.0, 2.0, 1.0, 0.0, -1.0, 5.0, 5.0], 2)  # batch 3 has a negative number


def _run(model, mode, steps=8, step=TrainStep, log_every_step=True, **options):
    """Runs all steps. Returns the step, and the values of each in a column by name."""
    train_step, source = make_step(
        model, DATA, step=step, optimizer=lambda: keras.optimizers.SGD(1e-3), **options
    )
    if mode == "loop":
        source = BatchStacker(source)
        source.ahead = True
    engine, found = Engine(train_step, mode=mode, log_every_step=log_every_step), []
    while sum(map(len, found)) < steps:
        logs = engine.run(source, steps - sum(map(len, found)))
        found.append(logs.rows())
    return train_step, dict(zip(logs.names, np.concatenate(found).T, strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_a_summary_that_is_not_finite_never_stops_training_whatever_its_name(mode):
    names = ["losses/raw", "losses/total_raw", "gradient_norm/raw", "gradient_norms"]

    def report(model, batch, y):
        for name in names:
            summary.scalar(name, np.nan * tf.reduce_mean(y), every_step=True)
        return {"mean": tf.reduce_mean(y)}

    _, found = _run(lambda: Line(report), mode, clip_norm=100.0)
    for name in names:
        assert np.isnan(found[name]).all()
    assert np.isfinite(found["losses/mean"]).all() and np.isfinite(found["gradient_norm"]).all()


@pytest.mark.parametrize("mode", MODES)
def test_a_number_that_the_step_shows_beside_its_losses_does_not_stop_it(mode):
    class Shows(TrainStep):
        def step(self, batch):
            losses = self.minimize(self.forward, batch)
            return {**losses, "ratio": losses["mean"] * np.nan}

    _, found = _run(Line, mode, step=Shows)
    assert np.isnan(found["losses/ratio"]).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shown", [True, False])
def test_a_loss_that_is_not_finite_stops_training_shown_or_not(mode, shown):
    class Shows(TrainStep):
        def step(self, batch):
            losses = self.minimize(self.forward, batch)
            return losses if shown else {}

    def report(model, batch, y):
        return {"a/root": tf.reduce_mean(tf.sqrt(y)), "losses/mean": tf.reduce_mean(y)}

    with pytest.raises(NonFiniteLossError, match="is not finite at step 3") as error:
        _run(lambda: Line(report), mode, step=Shows)
    bad = {name for name, value in error.value.losses.items() if not np.isfinite(value)}
    # A compiled loop watches losses that the step doesn't show by their total.
    assert {"total"} <= bad <= {"a/root", "total"}
    assert bad == {"a/root", "total"} or not shown


@pytest.mark.parametrize("mode", MODES)
def test_a_step_that_goes_wrong_leaves_everything_as_it_was(mode):
    class Model(Line):
        def __init__(self):
            super().__init__(lambda m, b, y: {"root": tf.reduce_mean(tf.sqrt(y))})
            self.seen = self.add_weight(name="seen", shape=(), initializer="zeros", trainable=False)
            self.mean = keras.metrics.Mean(name="metric")

        def call(self, batch, training=False):
            if training:
                self.seen.assign_add(1.0)
                self.mean.update_state(batch["x"])
            return super().call(batch, training)

    made = []

    def model():
        made.append(Model())
        return made[0]

    with pytest.raises(NonFiniteLossError):
        _run(model, mode)
    assert made[0].seen.numpy() == 2.0
    assert made[0].mean.count.numpy() == 4.0
    assert np.isfinite(made[0].w.numpy())
