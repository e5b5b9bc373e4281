"""Loads SavedModels and predicts; needs TensorFlow and NumPy only.

python serve.py FOLDER...  # each with export/ and in.npz, gets out.npz
"""

import sys

import numpy as np
import tensorflow as tf

for folder in sys.argv[1:]:
    function = tf.saved_model.load(f"{folder}/export").signatures["serving_default"]
    inputs = {name: tf.constant(array) for name, array in np.load(f"{folder}/in.npz").items()}
    found = function(**inputs)
    np.savez(f"{folder}/out.npz", **{name: value.numpy() for name, value in found.items()})
assert "tfloss" not in sys.modules, "a SavedModel needs more than TensorFlow"
