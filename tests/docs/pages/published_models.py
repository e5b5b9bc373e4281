import keras

import tfloss

__all__ = ["keras", "model", "tfloss"]

model = keras.Sequential([keras.Input([4]), keras.layers.Dense(3, activation="softmax")])
model.compile("sgd", "sparse_categorical_crossentropy")
