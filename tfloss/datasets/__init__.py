"""The data sets that ship with tfloss, as TFDS builders."""
