import keras
import tensorflow as tf

import tfloss
from tests.docs.same_start import assert_equal, x, y

__all__ = ["keras", "tf", "tfloss", "x", "y"]
CAPPED = False


def check(page):
    assert_equal(page["fitted"].variables, page["trained"].variables)
    assert_equal(page["fitted"].variables, page["own"].variables)
