"""tfloss trains TensorFlow / Keras models which own their losses."""
