"""A look at a run before training finds what the model does, and changes nothing."""

import json
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tfloss.errors import LossError


class Net(keras.Model):
    def __init__(self, name="net"):
        super().__init__(name=name)
        self.body = keras.layers.Dense(4, kernel_regularizer="l2")
        self.norm = keras.layers.BatchNormalization()
        self.drop = keras.layers.Dropout(0.5)
        self.box = keras.layers.Dense(2)
        self.kind = keras.layers.Dense(3, dtype="float16")

    def call(self, batch, training=False):
        hidden = self.drop(self.norm(self.body(batch["x"])))
        box, kind = self.box(hidden), self.kind(tf.stop_gradient(hidden))
        if not training:
            return {"box": box, "kind": kind}
        tfloss.summary.scalar("box/size", tf.reduce_mean(box))
        tfloss.add_loss(self, kind=tf.reduce_mean(kind**2))  # float16
        return {"box": tf.reduce_mean(box**2)}


def _data(size=24, batch=4, drop=True):
    x = np.random.default_rng(0).normal(size=[size, 5]).astype(np.float32)
    data = tf.data.Dataset.from_tensor_slices({"x": x})
    return data.shuffle(size).batch(batch, drop_remainder=drop).repeat()


def _trainer(strategy=None, groups=False, **options):
    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
        model = Net()
        optimizer = keras.optimizers.Adam(0.01)
        if groups:
            optimizer = {
                "all": tfloss.Group(optimizer, rate_multipliers={"*/bias": 2.0}),
            }
    return tfloss.Trainer(
        model, optimizer, strategy=strategy, seed=1, default_hooks=False, **options
    )


def _state(trainer):
    return {name: np.asarray(v.numpy()) for name, v in trainer.state.variables().items()}


def _line(text):
    with open(__file__) as file:
        return next(i for i, line in enumerate(file, 1) if text in line)


@pytest.mark.parametrize("count", [1, 2])
def test_the_report_has_losses_variables_summaries_and_state(replicas, count):
    trainer = _trainer(replicas(count), groups=True, loss_weights={"box": 0.25})
    report = trainer.inspect(_data())
    assert report.replicas == count and report.batch_size == 4 and report.workdir is None
    assert report.groups == {"all": "Adam"} and report.summaries == ("box/size",)
    box, kind, regularization = report.losses
    assert (box.name, box.layer, box.weight, box.dtype) == ("box", "net", 0.25, "float32")
    assert box.line == f"{__file__}:{_line('tf.reduce_mean(box**2)')}, in call"
    assert (kind.name, kind.layer, kind.weight, kind.dtype) == ("net/kind", "net", 1.0, "float16")
    assert kind.line == f"{__file__}:{_line('# float16')}, in call"
    assert regularization.name == "regularization"
    rows = {one.path: one for one in report.variables}
    assert rows["net/dense/kernel"].losses == ("box", "regularization")
    assert rows["net/dense_1/kernel"].losses == ("box",)
    assert rows["net/dense_2/bias"].losses == ("net/kind",)
    assert rows["net/dense_2/bias"].rate_multiplier == 2.0
    assert rows["net/dense/kernel"].rate_multiplier == 1.0
    assert rows["net/dense/kernel"].shape == (5, 4) and rows["net/dense/kernel"].group == "all"
    mean = rows["net/batch_normalization/moving_mean"]
    assert not mean.trainable and not mean.group and not mean.losses
    assert "net/batch_normalization/moving_mean" in report.state_updates
    assert any("seed_generator" in path for path in report.state_updates)
    trained = 5 * 4 + 4 + 2 * 4 + 4 * 2 + 2 + 4 * 3 + 3
    assert report.trainable_parameters == trained and report.parameters == trained + 2 * 4
    assert report.findings == ()
    # 4 / count examples: the layers, and the gradients of their weights and inputs. The first
    # layer has no gradient of its input, the last one stops it.
    rows_of_replica = 4 // count
    products = 2 * rows_of_replica * (2 * 5 * 4 + 3 * 4 * 2 + 2 * 4 * 3)
    assert products < report.cost.flops < products + 2_000
    assert report.cost.variable_bytes < report.cost.peak_bytes
    assert json.loads(json.dumps(report.to_json()))["losses"][0]["name"] == "box"
    assert "net/kind" in str(report)


@pytest.mark.parametrize(
    ("count", "drop"),
    [
        (1, False),
        pytest.param(1, True, marks=pytest.mark.slow),
        pytest.param(2, False, marks=pytest.mark.slow),
        pytest.param(2, True, marks=pytest.mark.slow),
    ],
)
def test_training_after_an_inspection_gives_the_same_bits(replicas, count, drop):
    states, order = [], []
    for inspects in (False, True):
        keras.utils.clear_session()
        keras.utils.set_random_seed(3)
        trainer, data = _trainer(replicas(count), clip_norm=1.0), _data(drop=drop)
        if inspects:
            trainer.inspect(data)
            before = _state(trainer)
            trainer.inspect(data)
            after = _state(trainer)
            assert all(np.array_equal(before[name], after[name]) for name in before)
            assert trainer.step == 0
        trainer.train(data, steps=7)
        states.append(_state(trainer))
        order.append((np.random.normal(), keras.random.normal([]).numpy()))
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        np.testing.assert_array_equal(value, states[1][name], err_msg=name)
    assert order[0] == order[1]


@pytest.mark.slow
def test_between_two_calls_of_train_nothing_changes():
    results = []
    for inspects in (False, True):
        keras.utils.clear_session()
        keras.utils.set_random_seed(3)
        trainer, data = _trainer(), _data()
        trainer.train(data, steps=3)
        if inspects:
            trainer.inspect(data)
        trainer.train(data, steps=6)
        results.append(_state(trainer))
    for name, value in results[0].items():
        np.testing.assert_array_equal(value, results[1][name], err_msg=name)


def test_shapes_are_those_of_the_first_batch_where_it_can_be_given_back(replicas):
    open_ended = _data(size=6, drop=False)
    assert _trainer().inspect(open_ended).batch_size == 4
    two = _trainer(replicas(2)).inspect(open_ended)  # a second iterator would shuffle again
    assert two.batch_size is None and two.cost.unknown and len(two.losses) == 3
    in_order = tf.data.Dataset.from_tensor_slices({"x": np.ones([6, 5], np.float32)}).batch(4)
    two = _trainer(replicas(2)).inspect(in_order)
    assert two.batch_size == 4 and not two.cost.unknown


def test_a_mistake_is_the_error_of_training():
    class Silent(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, batch, training=False):
            self.dense(batch["x"])

    trainer = tfloss.Trainer(Silent(), keras.optimizers.SGD(0.1), default_hooks=False)
    with pytest.raises(LossError, match="reported no loss"):
        trainer.inspect(_data())
    with pytest.raises(ValueError, match="has no optimizer"):
        tfloss.Trainer(Net(), default_hooks=False).inspect(_data())


def test_a_step_of_two_minimize_calls_is_inspected():
    class Gan(keras.Model):
        def __init__(self):
            super().__init__(name="gan")
            self.generator = keras.layers.Dense(5)
            self.discriminator = keras.layers.Dense(1)

        def call(self, batch, training=False):
            return self.discriminator(self.generator(batch["x"]))

    class Step(tfloss.TrainStep):
        def step(self, batch):
            first = self.minimize(self._real, batch, group="discriminator")
            return {**first, **self.minimize(self._fake, batch, group="generator")}

        def _real(self, batch):
            return {"real": tf.reduce_mean(self.model.discriminator(batch["x"]) ** 2)}

        def _fake(self, batch):
            return {"fake": tf.reduce_mean(self.model(batch) ** 2)}

    model = Gan()
    groups = {
        "generator": (keras.optimizers.SGD(0.1), model.generator),
        "discriminator": (keras.optimizers.SGD(0.1), model.discriminator),
    }
    trainer = tfloss.Trainer(model, groups, train_step=Step, default_hooks=False, seed=0)
    report = trainer.inspect(_data())
    losses = {one.name: one.groups for one in report.losses}
    assert losses == {"real": ("discriminator",), "fake": ("generator",)}
    rows = {one.path: (one.group, one.losses) for one in report.variables}
    assert rows["gan/dense/kernel"] == ("generator", ("fake",))
    assert rows["gan/dense_1/kernel"] == ("discriminator", ("real",))
    assert report.findings == ()


def test_accumulated_batches_count_together():
    report = _trainer(accumulate=2).inspect(_data())
    assert report.batch_size == 8 and [one.name for one in report.losses][:2] == ["box", "net/kind"]


def test_a_process_without_a_seed_is_named(monkeypatch):
    monkeypatch.setattr("tfloss._upstream.process_is_seeded", lambda: False)
    with warnings.catch_warnings():
        found = _trainer().inspect(_data()).findings
    assert [one.kind for one in found] == ["Unseeded randomness"]
