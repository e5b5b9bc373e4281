import keras
import tensorflow as tf

import tfloss
from tests.docs.same_start import assert_equal, x, y

__all__ = ["keras", "tf", "tfloss", "x", "y"]
CAPPED = False


def check(page):
    fitted, trained = page["fitted"].trainable_variables, page["trained"].trainable_variables
    assert_equal(fitted, trained, 1e-7)
