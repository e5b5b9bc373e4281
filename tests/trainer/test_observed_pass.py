"""What is found in the passes of a traced step, with the line of the user's source."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss

X = np.random.default_rng(0).normal(size=[4, 5]).astype(np.float32)
DATA = tf.data.Dataset.from_tensors({"x": X}).repeat()


class Net(keras.Model):
    """A model that computes its loss by a function of itself, the batch and its output."""

    def __init__(self, loss):
        super().__init__(name="net")
        self.head = keras.layers.Dense(3)
        self.spare = keras.layers.Dense(2)
        self.loss_of = loss
        self.raw = {}

    def build(self, shape):
        self.spare.build((None, 5))
        self.built = True

    def call(self, batch, training=False):
        y = self.head(batch["x"])
        return self.loss_of(self, batch, y) if training else [y, self.spare(batch["x"])]


def _report(loss, groups=None):
    model = Net(loss)
    optimizer = keras.optimizers.SGD(0.1) if groups is None else groups(model)
    return tfloss.Trainer(model, optimizer, default_hooks=False, seed=0).inspect(DATA)


def _all_used(model, batch, y):
    return tf.reduce_mean(y**2) + tf.reduce_mean(model.spare(batch["x"]))


def _summed(model, batch, y):
    return {"ctc": tf.reduce_sum(y**2), "mean": _all_used(model, batch, y)}  # ctc


def _uncompilable(model, batch, y):
    tf.strings.as_string(y)  # strings
    return _all_used(model, batch, y)


def _kept_in_the_kernel(model, batch, y):
    return _all_used(model, batch, y + tf.random.normal([3]))  # kernel


def _dynamic(model, batch, y):
    kept = tf.boolean_mask(y, y[:, 0] > 0)  # dynamic
    return _all_used(model, batch, y) + tf.reduce_mean(kept)


def _frozen(model, batch, y):
    return _all_used(model, batch, y) * np.random.uniform()  # frozen


def _foreign(model, batch, y):
    FOREIGN.assign_add(1.0)  # foreign
    return _all_used(model, batch, y)


FOREIGN = tf.Variable(0.0, trainable=False)


@pytest.mark.parametrize(
    ("loss", "kind", "subject", "comment"),
    [
        (_summed, "Sum over the examples of one replica", "loss 'ctc'", "# ctc"),
        (_uncompilable, "Op that XLA can't compile", "AsString", "# strings"),
        (_kept_in_the_kernel, "State that no checkpoint holds", "RandomStandardNormal", "# kernel"),
        (_foreign, "State that no checkpoint holds", "AssignAddVariableOp", "# foreign"),
        (_dynamic, "Shape that depends on values", "Where", "# dynamic"),
        (_frozen, "Random numbers that are drawn once", "Python's random or np.random", "# frozen"),
    ],
)
def test_a_fault_is_named_with_its_line(loss, kind, subject, comment):
    (found,) = _report(loss).findings
    assert (found.kind, found.subject) == (kind, subject)
    with open(__file__) as file:
        line = next(i for i, text in enumerate(file, 1) if text.rstrip().endswith(comment))
    assert found.line == f"{__file__}:{line}, in {loss.__name__}"
    assert found.cure


def test_a_clean_model_has_no_findings():
    assert _report(_all_used).findings == ()


def test_a_variable_that_no_loss_reaches_is_named():
    with pytest.warns(UserWarning, match="No loss reaches"):
        report = _report(lambda model, batch, y: tf.reduce_mean(y))
    kinds = [(one.kind, one.subject) for one in report.findings]
    assert ("Variable that no loss reaches", "net/dense_1/kernel") in kinds
    assert ("Variable that no loss reaches", "net/dense_1/bias") in kinds
    assert ("Layer that only inference uses", "net/dense_1") in kinds


def test_a_variable_that_keras_does_not_know_is_named():
    def loss(model, batch, y):
        return _all_used(model, batch, y) * model.raw["scale"]

    model = Net(loss)
    model.raw = {"scale": tf.Variable(1.0, name="scale")}
    trainer = tfloss.Trainer(model, keras.optimizers.SGD(0.1), default_hooks=False, seed=0)
    with pytest.warns(UserWarning, match="doesn't know"):
        (found,) = trainer.inspect(DATA).findings
    assert found.kind == "Variable that Keras doesn't know" and found.subject == "scale:0"


def test_weights_of_losses_are_numbers_or_names():
    def rate(step):
        return tf.cast(step, tf.float32)

    model = Net(lambda m, b, y: {"a": _all_used(m, b, y), "b": _all_used(m, b, y)})
    weights = {"a": rate, "b": 0.5}
    trainer = tfloss.Trainer(
        model, keras.optimizers.SGD(0.1), loss_weights=weights, default_hooks=False, seed=0
    )
    a, b = trainer.inspect(DATA).losses
    assert "rate" in a.weight and b.weight == 0.5


def test_losses_name_the_groups_that_they_train():
    def loss(model, batch, y):
        spare = tf.reduce_mean(model.spare(batch["x"]))
        return {"head": {"size": tf.reduce_mean(y**2)}, "spare": {"size": spare}}

    def groups(model):
        return {
            "head": (keras.optimizers.SGD(0.1), model.head),
            "spare": tfloss.Group(keras.optimizers.SGD(0.1), model.spare, every=2, offset=1),
        }

    report = _report(loss, groups)
    assert {one.name: one.groups for one in report.losses} == {
        "head/size": ("head",),
        "spare/size": ("spare",),
    }
    rows = {one.path: (one.group, one.losses) for one in report.variables}
    assert rows["net/dense/kernel"] == ("head", ("head/size",))
    assert rows["net/dense_1/kernel"] == ("spare", ("spare/size",))
