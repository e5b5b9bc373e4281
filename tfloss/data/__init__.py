"""Data: how batches reach the replicas, and the data sets of the examples.

Each data set is a TFDS builder in a module of its own; importing the module registers its
name. Nothing is imported here, so that `import tfloss` doesn't pull in TensorFlow Datasets.
"""
