import keras
import tensorflow as tf

import tfloss
from tfloss import Every, Hook

__all__ = ["Hook"]


def check(page):
    hook = page["Announce"](Every(steps=2))
    net = keras.Sequential([keras.layers.Dense(1)])
    model = tfloss.adapters.supervised(net, "mse")
    trainer = tfloss.Trainer(model, keras.optimizers.SGD(0.1), hooks=[hook])
    trainer.train(tf.data.Dataset.from_tensors((tf.ones([2, 1]), tf.ones([2, 1]))).repeat(), 2)
