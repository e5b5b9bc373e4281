"""Runs a SavedModel on zeros and prints the shapes of its outputs; needs TensorFlow only.

python load_saved_model.py PATH '{"image": [[3, 28, 28, 1], "float32"]}'
"""

import json
import sys

import tensorflow as tf

loaded = tf.saved_model.load(sys.argv[1])
inputs = {key: tf.zeros(shape, dtype) for key, (shape, dtype) in json.loads(sys.argv[2]).items()}
found = loaded.signatures["serving_default"](**inputs)
assert "tfloss" not in sys.modules, "the SavedModel needs more than TensorFlow"
print(json.dumps({key: value.shape.as_list() for key, value in found.items()}))
