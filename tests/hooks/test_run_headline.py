"""A run says what it is before its first progress line, and says it once."""

import io

import keras
import pytest
import tensorflow as tf

import tfloss
from tfloss.hooks import Progress


class Pair(keras.Model):
    """Two layers of 4 and 3 parameters, and a loss for each."""

    def __init__(self):
        super().__init__()
        self.a, self.b = keras.layers.Dense(1), keras.layers.Dense(1)

    def build(self, shape):
        self.a.build((None, 3))
        self.b.build((None, 2))
        self.built = True

    def call(self, batch, training=False):
        found = {"a": self.a(batch), "b": self.b(batch[:, :2])}
        return {name: tf.reduce_mean(y**2) for name, y in found.items()} if training else found


DATA = tf.data.Dataset.from_tensors(tf.ones([4, 3])).repeat()


@pytest.mark.parametrize("count", [1, 2])
def test_the_short_form_of_the_report_comes_first_and_once(replicas, count, tmp_path, capsys):
    out, strategy = io.StringIO(), replicas(count)
    with strategy.scope():
        model = Pair()
        groups = {name: (keras.optimizers.SGD(0.1), getattr(model, name)) for name in "ab"}
    trainer = tfloss.Trainer(
        model,
        groups,
        strategy=strategy,
        jit=False,
        hooks=[Progress(stream=out)],
        default_hooks=False,
        workdir=tmp_path / "run",
    )
    trainer.train(DATA, 2)
    *first, last = out.getvalue().splitlines()
    assert first == [
        "  parameters  7 (7 trained)",
        "  losses      a, b",
        "  optimizer   a (SGD), b (SGD)",
        f"  batch       4 examples, on {count} replica{'s' * (count == 2)}",
        f"  workdir     {tmp_path / 'run'}",
    ]
    assert last.startswith("step 2/2  total ")
    report = trainer.inspect(DATA)
    assert first == [" " * 2 + f"{name:<10}  {value}" for name, value in report.headline()[1:6]]
    trainer.train(DATA, 4)
    assert [line[:9] for line in out.getvalue().splitlines()[5:]] == ["step 2/2 ", "step 4/4 "]
    model.a.bias.trainable = False
    trainer.train(DATA, 6)
    assert "  parameters  7 (6 trained)" in out.getvalue().splitlines()[7:]
    assert capsys.readouterr().err == ""


def test_nothing_is_said_without_progress(capsys):
    trainer = tfloss.Trainer(Pair(), keras.optimizers.SGD(0.1), jit=False, default_hooks=False)
    trainer.train(DATA, 1)
    assert capsys.readouterr().err == ""
