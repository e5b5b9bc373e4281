"""An earlier run in runs/digits, with averages, and files of Keras's."""

import keras
import tensorflow as tf

import tfloss


class Line(keras.Model):
    def __init__(self, name="line"):
        super().__init__(name=name)
        self.backbone = keras.layers.Dense(1, name="backbone")

    def call(self, batch, training=False):
        y = self.backbone(batch["x"])
        return {"loss": tf.reduce_mean((y - batch["y"]) ** 2)} if training else {"y": y}


class Old(keras.Model):
    def __init__(self):
        super().__init__(name="line")
        self.encoder = keras.layers.Dense(1)

    def call(self, batch):
        return self.encoder(batch["x"])


one = tf.ones([2, 1])
data = tf.data.Dataset.from_tensors({"x": one, "y": one}).repeat()
old = Old()
old({"x": one})
old.save_weights("old.weights.h5")
every = tfloss.Every(steps=1)
accuracy = tfloss.metric(keras.metrics.MeanSquaredError(), lambda b, y: (b["y"], y["y"]))
trainer = tfloss.Trainer(Line(), keras.optimizers.SGD(0.1), workdir="runs/digits", ema=0.9)
hooks = [
    tfloss.hooks.Evaluate(data.take(1), {"accuracy": accuracy}, every=every),
    tfloss.hooks.SaveCheckpoint(every),
]
trainer.train(data, 2, hooks=hooks)
tfloss.export(trainer.model, "runs/digits/export", inputs={"x": tf.TensorSpec([None, 1])})
model = Line()
model({"x": one})


def check(page):
    assert not page["report"].missing, page["report"]
    assert model.backbone.kernel.numpy() == old.encoder.kernel.numpy()
