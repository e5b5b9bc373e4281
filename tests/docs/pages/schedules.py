import keras
import tensorflow as tf

import tfloss


class Net(keras.Model):
    def __init__(self):
        super().__init__(name="net")
        self.dense = keras.layers.Dense(1, name="dense")

    def call(self, batch, training=False):
        y = self.dense(batch)
        if not training:
            return y
        return {"error": tf.reduce_mean((y - 1) ** 2), "kl": tf.reduce_mean(y**2)}


class Rates(tfloss.Hook):
    """Collects the logged learning rates by step."""

    def on_log(self, step, scalars, summaries):
        rates[step] = scalars["learning_rate"]


rates: dict[int, float] = {}
model = Net()
val_set = tf.data.Dataset.from_tensors(tf.ones([4, 2]))
data = val_set.repeat()


def trained(optimizer, steps, **options):
    trainer = tfloss.Trainer(Net(), optimizer, log_every=1, hooks=[Rates()], jit=False, **options)
    trainer.train(data, steps)


def near(value, expected):
    return abs(float(value) - expected) < 1e-8 + 1e-5 * expected


def check(page):
    rate = page["rate"]
    assert near(rate(0), 0) and near(rate(250), 5e-4) and near(rate(500), 1e-3)
    assert near(rate(500 + 9_500 / 2), 5e-4) and near(rate(10_000), 0)
    cycle = page["OneCycle"](0.1, 3_000)
    assert near(cycle(500), 0.05) and near(cycle(1_000), 0.1) and near(cycle(2_000), 0.05)
    trained(
        keras.optimizers.SGD(page["OneCycle"](0.3, 9)), 2
    )  # step k uses the rate of k - 1 updates
    assert near(rates[1], 0) and near(rates[2], 0.1), rates
    assert near(page["grow"](500), 0.5)
    page["trainer"].train(data, 2)
