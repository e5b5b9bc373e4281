"""A compiled model is trained and evaluated as it was compiled. tests/adapters/test_parity.py
compares its training with fit, bit for bit.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tfloss.adapters import from_compiled
from tfloss.errors import LossError, ModelError
from tfloss.hooks import EarlyStopping, Evaluate, Every, SaveCheckpoint

_X = np.float32([[1.0], [2.0], [3.0]])
_Y = np.float32([[0.0], [1.0], [6.0]])
_DATA = tf.data.Dataset.from_tensor_slices((_X, _Y)).batch(2)


class _Line(keras.Model):
    """y = w x, with w = 1 at the start. Its `call` has no argument `training`."""

    def __init__(self):
        super().__init__(name="line")
        self.w = self.add_weight(name="w", shape=(), initializer="ones")

    def call(self, x):
        return self.w * x


def _compiled(model, **options):
    options = {"loss": "mse", **options}
    model.compile(optimizer=keras.optimizers.SGD(0.1), jit_compile=False, **options)
    return model


def _trainer(model, **options):
    options = {"default_hooks": False, "jit": False, **options}
    return tfloss.Trainer(from_compiled(model), model.optimizer, **options)


class _OwnLoss(_Line):
    def compute_loss(self, x, y, y_pred, sample_weight=None):
        return 3 * super().compute_loss(x, y, y_pred, sample_weight) + keras.ops.mean(x)


class _HalfData(_Line):
    """Its train_step changes the batch, as that of a task with preprocessing."""

    def train_step(self, data):
        x, y = data
        return super().train_step((x, y / 2))


class _OwnStep(_Line):
    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = keras.ops.mean((self(data[0]) - data[1]) ** 2)
        self.optimizer.apply_gradients([(tape.gradient(loss, self.w.value), self.w)])
        return {"loss": loss}


class _OwnStepByHelper(_Line):
    """Names Keras's train_step, but doesn't call it."""

    def train_step(self, data):
        return {"loss": 0.0} if super().train_step else {}


@pytest.mark.parametrize("kind", [_Line, _OwnLoss, _HalfData])
def test_models_of_all_kinds_train_as_by_fit(kind):
    fitted, trained = _compiled(kind()), _compiled(kind())
    fitted.fit(_DATA, verbose=0)
    result = _trainer(trained).train(_DATA, steps=2)
    assert fitted.w.numpy() == trained.w.numpy() != 1
    name = "loss" if kind is _OwnLoss else "mean_squared_error"
    assert set(result.losses) == {name, "total"}


class _Penalty(keras.Layer):
    """Adds a loss."""

    def call(self, x):
        self.add_loss(0.1 * keras.ops.mean(x**2))
        return x


class _LeavesAddedLossesOut(keras.Model):
    def compute_loss(self, x, y, y_pred, sample_weight=None):
        return keras.ops.mean((y_pred["a"] - y) ** 2 + y_pred["b"] ** 2)


class _RunsAgain(keras.Model):
    """Its compute_loss makes labels, and runs the model again: in inference mode, as fit does."""

    def compute_loss(self, x, y, y_pred, sample_weight=None):
        again, labels = self(x), {"a": y, "b": y / 2}
        loss = super().compute_loss(x, labels, y_pred, sample_weight)
        return loss + super().compute_loss(x, labels, again, sample_weight)


class _RunsBefore(keras.Model):
    """Its labels come from the model itself, before Keras's own train_step opens the tape."""

    def train_step(self, data):
        x, y = data
        return super().train_step((x, {"a": y - self(x)["a"], "b": y}))

    def test_step(self, data):
        return super().test_step((data[0], {"a": data[1], "b": data[1]}))


@pytest.mark.parametrize("kind", [_LeavesAddedLossesOut, _RunsAgain, _RunsBefore])
def test_own_methods_run_outside_of_the_calls_of_layers_as_in_fit(kind):
    models = []
    for _ in range(2):
        x = keras.Input([1])
        norm = keras.layers.BatchNormalization(momentum=0.5)
        options = {"kernel_initializer": "ones", "kernel_regularizer": "l2"}
        h = _Penalty()(norm(x))
        heads = {name: keras.layers.Dense(1, name=name, **options)(h) for name in "ab"}
        losses = {"a": "mse", "b": "mae"}
        models.append(
            _compiled(kind(x, heads, name="own"), loss=losses, loss_weights={"a": 2.0, "b": 1.0})
        )
    fitted, trained = models
    data = tf.data.Dataset.from_tensors((_X, _Y)).repeat(2)
    fitted.fit(data, verbose=0)
    trainer = _trainer(trained)
    trainer.train(data, steps=2)
    for a, b in zip(fitted.variables, trained.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)
    if kind is not _RunsBefore:  # it has its own test_step
        expected = fitted.evaluate(data, verbose=0, return_dict=True)
        names = {"loss"} if kind is _LeavesAddedLossesOut else {"loss", "a_loss", "b_loss"}
        assert set(expected) == names
        assert trainer.evaluate(data) == pytest.approx(expected, rel=1e-6)


class _Ctc(keras.Layer):
    """An endpoint that adds a loss [n, 1], as Keras's ctc_batch_cost, and returns predictions."""

    def call(self, text, logits):
        length, frames = (
            keras.ops.sum(keras.ops.cast(text > 0, "int32"), 1),
            keras.ops.shape(logits),
        )
        sizes = keras.ops.full([frames[0]], frames[1])
        self.add_loss(keras.ops.ctc_loss(text, logits, length, sizes)[:, None])  # ctc
        return keras.ops.softmax(logits)


@pytest.mark.parametrize("count", [1, 2])
def test_a_ctc_endpoint_trains_unchanged_and_its_sum_is_that_of_the_global_batch(count, replicas):
    models = []
    for strategy in (replicas(1), replicas(count)):
        keras.utils.set_random_seed(1)
        with strategy.scope():
            image, text = keras.Input([6, 3], name="image"), keras.Input([2], name="label")
            models.append(keras.Model([image, text], _Ctc()(text, keras.layers.Dense(4)(image))))
            models[-1].compile(keras.optimizers.SGD(0.1), jit_compile=False)
    fitted, trained = models
    arrays = {"image": np.random.rand(4, 6, 3).astype("float32")}
    arrays["label"] = np.float32([[1, 2], [3, 0], [2, 0], [3, 1]])
    data = tf.data.Dataset.from_tensors(arrays).repeat(2)
    fitted.fit(data, verbose=0)
    trainer = _trainer(trained, strategy=strategy)
    (loss,) = trainer.inspect(data).losses
    with open(__file__) as file:
        line = next(i for i, text in enumerate(file, 1) if text.endswith("# ctc\n"))
    assert loss.line == f"{__file__}:{line}, in call"
    trainer.train(data, steps=2)
    atol = 0 if count == 1 else 1e-7
    for a, b in zip(fitted.weights, trained.weights, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=0, atol=atol)
    if count == 1:
        expected = fitted.evaluate(data, verbose=0)
        assert trainer.evaluate(data) == {"loss": pytest.approx(expected, rel=1e-6)}


@pytest.mark.parametrize("kind", [_OwnStep, _OwnStepByHelper])
def test_a_train_step_that_computes_the_update_is_refused_with_the_lines_to_change(kind):
    model = _compiled(kind())
    lines = r"(?s)own train_step \(.*test_compiled.py:\d+\).*1\. `def train_step.*2\. .*3\. "
    with pytest.raises(ModelError, match=lines):
        _trainer(model).train(_DATA, steps=1)


def test_the_three_lines_are_enough():
    class Changed(_Line):
        def call(self, batch, training=False):
            if not training:
                return self.w * batch[0]
            loss = keras.ops.mean((self.w * batch[0] - batch[1]) ** 2)
            return {"loss": loss}

    before = _compiled(_OwnStep())
    before.fit(_DATA, verbose=0)
    after = Changed()
    options = {"default_hooks": False, "jit": False}
    tfloss.Trainer(after, keras.optimizers.SGD(0.1), **options).train(_DATA, steps=2)
    assert before.w.numpy() == after.w.numpy()


def test_what_is_not_compiled_is_refused():
    with pytest.raises(ModelError, match="'line' is not compiled. Call model.compile"):
        from_compiled(_Line())
    with pytest.raises(LossError, match="'mean_squared_error' has reduction=None"):
        from_compiled(_compiled(_Line(), loss=keras.losses.MeanSquaredError(reduction=None)))
    model = _compiled(_Line(), loss=["mse", "mae"])
    with pytest.raises(LossError, match="A single output has 2 losses.*the first one only"):
        _trainer(model).train(_DATA, steps=1)


@pytest.mark.parametrize("count", [1, 2])
def test_evaluation_counts_each_example_once(count, replicas):
    with (strategy := replicas(count)).scope():
        x = keras.Input([1])
        options = {"use_bias": False, "kernel_initializer": "ones"}
        a = keras.layers.Dense(
            1, name="a", kernel_regularizer=keras.regularizers.L2(0.5), **options
        )
        b = keras.layers.Dense(
            1, name="b", activity_regularizer=keras.regularizers.L2(1), **options
        )
        model = _compiled(
            keras.Model(x, {"a": a(x), "b": b(x)}),
            loss={"a": "mse", "b": "mae"},
            loss_weights={"a": 2.0, "b": 3.0},
            metrics={"a": keras.metrics.MeanAbsoluteError(name="error")},
            weighted_metrics={"a": ["mae"]},
        )
    weights = np.float32([1.0, 1.0, 4.0])
    arrays = (_X, {"a": _Y, "b": _Y}, {"a": weights, "b": weights})
    data = tf.data.Dataset.from_tensor_slices(arrays).batch(2)
    found = _trainer(model, strategy=strategy).evaluate(data)
    # Errors are 1, 1 and 3. An activity regularizer is divided by the size of its batch.
    a_loss, b_loss = (1 + 1 + 4 * 9) / 3, (1 + 1 + 4 * 3) / 3
    activity = (2 * (1 + 4) / 2 + 9) / 3
    assert found == pytest.approx(
        {
            "loss": 2 * a_loss + 3 * b_loss + 0.5 + activity,
            "a_loss": a_loss,
            "b_loss": b_loss,
            "a_error": 5 / 3,
            "a_mae": (1 + 1 + 4 * 3) / 6,
        }
    )
    if count == 1:
        assert model.evaluate(data, verbose=0, return_dict=True)["loss"] == pytest.approx(
            found["loss"]
        )


def test_compiled_metrics_are_logged_and_monitored_by_their_names(messages):
    trainer = _trainer(_compiled(_Line(), metrics=["mae"]), log_every=1)
    evaluate = Evaluate(_DATA, trainer.model.evaluation_metrics(), every=Every(steps=1))
    assert evaluate.logs("val/mae") and not evaluate.logs("train/mae")
    assert evaluate.known_names() == ["val/loss", "val/mae"]
    stopping = EarlyStopping("val/mae", patience=1)
    result = trainer.train(_DATA.repeat(), steps=50, hooks=[evaluate, stopping])
    assert result.step < 50 and "val/mae" in str(result.reason)


def test_hooks_know_the_compiled_metrics_of_an_evaluation_without_metrics(tmp_path):
    """Monitoring hooks and callbacks know names and directions before the first step."""
    found = []

    class Found(tfloss.Hook):
        def on_log(self, step, scalars, summaries):
            found.extend(scalars[name] for name in scalars if name == "val/mae")

    trainer = _trainer(_compiled(_Line(), metrics=["mae"]), log_every=1, workdir=tmp_path)
    hooks = [
        Found(),
        SaveCheckpoint(Every(steps=1), keep_last=1, keep_best=1, metric="val/mae"),
        Evaluate(_DATA, every=Every(steps=1)),
        EarlyStopping("val/loss", patience=9),
        keras.callbacks.EarlyStopping("val_mae", patience=9),
    ]
    trainer.train(_DATA, epochs=2, hooks=hooks)
    again = tfloss.Trainer(from_compiled(_compiled(_Line(), metrics=["mae"])), workdir=tmp_path)
    again.restore((_X, _Y), best="val/mae")
    assert len(found) == 4
    assert again.evaluate(_DATA)["mae"] == pytest.approx(min(found))


def test_a_mistyped_metric_is_answered_by_the_compiled_ones():
    trainer = _trainer(_compiled(_Line(), metrics=["mae"]))
    hooks = [Evaluate(_DATA), EarlyStopping("val/mea", patience=1)]
    with pytest.raises(ValueError, match="Did you mean 'val/mae'"):
        trainer.train(_DATA.repeat(), steps=1, hooks=hooks)


def test_evaluation_forgets_what_fit_left_in_the_metrics():
    model = _compiled(_Line(), metrics=[keras.metrics.MeanAbsoluteError(name="error")])
    model.fit(_DATA.map(lambda x, y: (x, y + 100)), verbose=0)
    model.w.assign(1.0)
    assert _trainer(model).evaluate(_DATA)["error"] == pytest.approx((1 + 1 + 3) / 3)


def test_compiled_metrics_are_evaluated_beside_validation_losses():
    trainer = _trainer(_compiled(_Line(), metrics=["mae"]))
    metrics = trainer.evaluate(_DATA)
    losses = trainer.evaluate(_DATA, {}, losses=True)
    assert set(metrics) == {"loss", "mae"} and "losses/total" in losses
    assert trainer.evaluate(_DATA, losses=True) == metrics | losses
    hook = Evaluate(_DATA, losses=True)
    trainer.train(_DATA, steps=1, hooks=[hook])
    assert set(hook.results_at(1)) == set(metrics | losses)


def test_a_model_with_its_own_evaluation_is_refused_there():
    class OwnTest(_Line):
        def test_step(self, data):
            return {}

    trainer = _trainer(_compiled(OwnTest()))
    with pytest.raises(ModelError, match="'line' has its own test_step.*losses=True"):
        trainer.evaluate(_DATA)
    assert trainer.evaluate(_DATA, {}, losses=True)["losses/total"] == pytest.approx(11 / 3)


def test_an_own_loss_divides_by_the_count_of_the_global_batch(replicas):
    class Masked(_OwnLoss):
        def call(self, x):
            y = self.w * x
            y._keras_mask = x[:, 0] > 1.5  # of four examples, three count
            return y

    x = np.float32([[1], [2], [3], [4]])
    with (strategy := replicas(2)).scope():
        model = _compiled(Masked())
    data = tf.data.Dataset.from_tensor_slices((x, 0 * x)).batch(4)
    result = _trainer(model, strategy=strategy).train(data, steps=1)
    assert result.losses["loss"] == pytest.approx(3 * (4 + 9 + 16) / 3 + 2.5)
