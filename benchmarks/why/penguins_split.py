"""The model of examples/penguins in the form that `keras.fit` needs: model, losses, targets.

It is as short as this form allows: it inherits the example's layers. Learned uncertainty and
scheduled weights are missing, because a loss function has no access to variables of the model, and
`compile(loss_weights=)` takes numbers.
"""

from collections.abc import Callable

import keras
import tensorflow as tf
from _examples import load

example = load("penguins/model.py")


class SplitPenguins(example.Penguins):
    """Returns the inputs of the losses, in standard units, in training and in inference."""

    def call(self, batch, training=False):
        """Returns an output for each task."""
        sizes = self.standard("measurements", batch["measurements"])
        known = ~tf.math.is_nan(sizes)
        seen = known
        if training and "reconstruction" in self.tasks:
            seen &= keras.random.uniform(tf.shape(sizes), seed=self.random) >= self.hidden
        code = self.trunk(
            tf.concat(
                [
                    tf.where(seen, sizes, 0.0),
                    tf.cast(seen, tf.float32),
                    tf.one_hot(batch["island"], 3),
                ],
                -1,
            )
        )
        out = {}
        if "species" in self.tasks:
            out["species"] = self.heads["species"](code)
        if "sex" in self.tasks:
            out["sex"] = self.heads["sex"](code)
        if "mass" in self.tasks:
            out["mass"] = self.heads["mass"](code)
        if "isotopes" in self.tasks:
            out["isotopes"] = self.heads["isotopes"](code)
        if "reconstruction" in self.tasks:
            # Only the forward pass knows the hidden values, so they leave with the prediction.
            hidden = tf.where(seen, float("nan"), sizes)
            out["reconstruction"] = tf.stack([self.heads["reconstruction"](code), hidden], -1)
        return out

    def predictions(self, outputs):
        """Converts outputs to predictions: probabilities, g, per mille."""
        found = {}
        if "species" in self.tasks:
            found["species"] = tf.nn.softmax(outputs["species"])
        if "sex" in self.tasks:
            found["sex"] = tf.nn.softmax(outputs["sex"])
        if "mass" in self.tasks:
            found["mass"] = self.original("mass", outputs["mass"])[:, 0]
        if "isotopes" in self.tasks:
            found["isotopes"] = self.original("isotopes", outputs["isotopes"])
        return found


def losses(tasks) -> dict[str, Callable]:
    """Returns the argument of `compile(loss=)`."""
    found = {}
    if "species" in tasks:
        found["species"] = cross_entropy
    if "sex" in tasks:
        found["sex"] = cross_entropy
    if "mass" in tasks:
        found["mass"] = squared_error
    if "isotopes" in tasks:
        found["isotopes"] = squared_error
    if "reconstruction" in tasks:
        found["reconstruction"] = reconstruction_error
    return found


def targets(model, batch):
    """(x, y) for `fit`, y in the units that the losses take."""
    y = {}
    if "species" in model.tasks:
        y["species"] = batch["species"]
    if "sex" in model.tasks:
        y["sex"] = batch["sex"]
    if "mass" in model.tasks:
        y["mass"] = model.standard("mass", batch["mass"][:, tf.newaxis])
    if "isotopes" in model.tasks:
        y["isotopes"] = model.standard("isotopes", batch["isotopes"])
    if "reconstruction" in model.tasks:
        y["reconstruction"] = tf.zeros_like(batch["measurements"])  # `fit` needs it
    return {"measurements": batch["measurements"], "island": batch["island"]}, y


def cross_entropy(label, logits):
    """Computes the mean cross entropy over the known labels of the replica's batch."""
    label = tf.cast(tf.reshape(label, [-1]), tf.int64)
    known = tf.cast(label >= 0, tf.float32)
    each = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.maximum(label, 0), logits)
    return tf.math.divide_no_nan(tf.reduce_sum(each * known), tf.reduce_sum(known))


def squared_error(target, guess):
    """Computes the mean squared error over the known values of the replica's batch."""
    known = ~tf.math.is_nan(target)
    each = (guess - tf.where(known, target, guess)) ** 2
    return tf.math.divide_no_nan(tf.reduce_sum(each), tf.reduce_sum(tf.cast(known, tf.float32)))


def reconstruction_error(_, output):
    """Computes the squared error of the hidden measurements."""
    guess, hidden = tf.unstack(output, axis=-1)
    return squared_error(hidden, guess)
