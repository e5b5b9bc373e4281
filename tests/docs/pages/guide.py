"""What the guide takes for granted: models, data, and an earlier run in runs/mine."""

import importlib.util
import inspect

import keras
import numpy as np
import tensorflow as tf

import tfloss
from tfloss import Every

__all__ = ["Every"]
rng = np.random.default_rng(0)
images, labels = rng.random([8, 28, 28, 1], np.float32), np.arange(8)
test_set = tf.data.Dataset.from_tensor_slices({"image": images, "label": labels}).batch(4)
val_set = test_set
dataset = test_set.repeat()


class Classifier(keras.Model):
    def __init__(self):
        super().__init__(name="classifier")
        layers = [keras.layers.Flatten(), keras.layers.Dense(10, name="head")]
        self.net = keras.Sequential(layers, name="backbone")

    def call(self, batch, training=False):
        logits = self.net(batch["image"], training=training)
        if training:
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits)
            return {"cross_entropy": tf.reduce_mean(loss)}
        return {"probabilities": tf.nn.softmax(logits)}


class Gan(keras.Model):
    def __init__(self):
        super().__init__(name="gan")
        self.generator, self.discriminator = keras.layers.Dense(4), keras.layers.Dense(1)

    def judge(self, batch):
        fake = self.discriminator(tf.stop_gradient(self.generator(batch["x"])))
        return {"discriminator/score": tf.reduce_mean(fake - self.discriminator(batch["x"]))}

    def fool(self, batch):
        return {"generator/score": -tf.reduce_mean(self.discriminator(self.generator(batch["x"])))}

    def call(self, batch, training=False):
        return self.judge(batch) | self.fool(batch) if training else self.generator(batch["x"])


@keras.saving.register_keras_serializable()
class Vae(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.decoder = keras.layers.Dense(4)

    def call(self, batch, training=False):
        error = tf.reduce_mean((self.decoder(batch) - batch) ** 2)
        return {"error": error, "kl": tf.reduce_mean(self.decoder(batch) ** 2)} if training else 1.0


model, optimizer, strategy = Classifier(), keras.optimizers.Adam(1e-3), None
gan, vae = Gan(), Vae()
box_error, is_positive = tf.ones([4]), tf.constant([1.0, 0, 0, 1])
embeddings, logits = tf.ones([4, 2]), tf.ones([8, 10])
inputs = keras.Input([4])
outputs = {name: keras.layers.Dense(1, name=name)(inputs) for name in ("box", "class")}
net = keras.Model(inputs, outputs)
x = test_x = tf.ones([8, 4])
data = tf.data.Dataset.from_tensors((x, {"box": x[:, :1], "class": x[:, :1]})).repeat()
test_data = data.take(1)
accuracy = tfloss.metric(
    keras.metrics.SparseCategoricalAccuracy(),
    lambda batch, predictions: (batch["label"], predictions["probabilities"]),
)

every = Every(steps=1)
saved = tfloss.Trainer(Classifier(), keras.optimizers.Adam(1e-3), workdir="runs/mine", jit=False)
hooks = [tfloss.hooks.Evaluate(test_set, {"accuracy": accuracy}, every=every)]
saved.train(dataset, 1, hooks=[*hooks, tfloss.hooks.SaveCheckpoint(every)])
del saved

# The guide names trackers that the tests don't install. Their arguments are right all the same.
for package, name in (("wandb", "WandB"), ("mlflow", "MLflow")):
    if importlib.util.find_spec(package) is None:
        signature = inspect.signature(getattr(tfloss.hooks, name))
        setattr(tfloss.hooks, name, signature.bind)


def losses_of(model, optimizer, batch, **options):
    data = tf.data.Dataset.from_tensors(batch).repeat()
    return tfloss.Trainer(model, optimizer, jit=False, **options).train(data, 2).losses


def check(page):
    sgd, x = keras.optimizers.SGD, {"x": tf.ones([4, 4])}
    found = losses_of(page["Net"](), sgd(0.1), x, loss_weights=page["loss_weights"])
    assert set(found) == {"rpn/box", "rpn/objectness", "net", "net/kl", "total"}, found
    for step in ("GanStep", "WganStep"):
        groups = {name: (sgd(0.1), getattr(page["gan"], name)) for name in page["groups"]}
        found = losses_of(page["gan"], groups, x, train_step=page[step])
        assert {"generator/score", "discriminator/score"} <= set(found)
    assert page["fitted"].history.keys() >= {"loss", "kl", "val_loss", "val_kl"}

    class Logs(keras.Model):
        def build(self, _):
            self.w = self.add_weight()

        def call(self, batch, training=False):
            pixels = tf.zeros([4, 8, 8, 3], tf.uint8)
            page["log"](pixels, tf.ones([4, 1, 4]), tf.ones([4]), tf.constant(["a", "b"]))
            return {"loss": self.w * tf.reduce_mean(batch["x"])}

    tags = set()

    class Tags(tfloss.Hook):
        def on_log(self, step, scalars, summaries):
            tags.update(scalars, (summary.name for summary in summaries))

    losses_of(Logs(), sgd(0.1), x, log_every=1, hooks=[Tags()])
    assert {"score", "scores", "inputs", "captions", "boxes", "rpn/best"} <= tags, tags
