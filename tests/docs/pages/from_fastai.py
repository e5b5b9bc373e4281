import keras
import tensorflow as tf

import tfloss
from tests.docs.same_start import assert_equal, x, y

__all__ = ["keras", "tf", "tfloss", "x", "y"]
CAPPED = False


def check(page):
    if "torch_net" in page:
        assert_equal(list(page["torch_net"].parameters()), page["net"].variables, 1e-6)
    assert page["trainer"].step == 9
