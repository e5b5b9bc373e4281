import keras
import tensorflow as tf

import tfloss
from tests.docs.same_start import assert_equal, x, y

__all__ = ["keras", "tf", "tfloss", "x", "y"]
val_x, val_y = x[:32], y[:32]
CAPPED = False


def check(page):
    assert_equal(page["fitted"].variables, page["trained"].variables)
    assert_equal(page["fitted"].variables, page["own"].variables)
    assert page["best"].evaluate(x, y, verbose=0)[1] > 0.4
