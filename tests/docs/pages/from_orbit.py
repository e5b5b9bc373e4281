import keras
import tensorflow as tf

import tfloss
from tests.docs.same_start import assert_equal, x, y

__all__ = ["keras", "tf", "tfloss", "x", "y"]
CAPPED = False


def make_net():
    return keras.Sequential([keras.layers.Dense(16, "relu"), keras.layers.Dense(2)])


data = tf.data.Dataset.from_tensor_slices((x, y)).batch(32).repeat()


def check(page):
    if "orbit_net" in page:
        assert_equal(page["orbit_net"].variables, page["model"].variables, 1e-7)
    assert page["trainer"].step == 9
