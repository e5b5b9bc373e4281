"""Sparse gradients (`tf.IndexedSlices`), as embeddings and `tf.gather` have them. Traced.

A sparse gradient lists rows of a variable. A row that was looked up several times is listed several
times, and its gradient is the sum of these entries. Keras optimizers square each entry, clip it, or
divide it on its own. That is wrong for repeated rows: the square of a sum is not the sum of the
squares. So every update here is that of the dense gradient, whatever the optimizer, the options and
the number of replicas. In particular, a row that was not looked up has gradient 0. Momentum and
weight decay move it, as they would without an embedding.
"""

from typing import Any, Literal

import keras
import tensorflow as tf

Form = Literal["repeated", "merged", "dense"]
"""How an optimizer gets a sparse gradient.

"repeated": as it is. "merged": still sparse, with each row once. "dense": as a tensor.
"""


def sparse_form(optimizer: Any, *, norm: bool, static: bool) -> Form:
    """Chooses the cheapest form with which an optimizer applies the update of a dense gradient.

    Plain SGD is linear in the gradient, so repeated rows need no merging. It and Adagrad leave
    rows with gradient 0 as they are. All other optimizers of Keras compute every row anyway.
    Exactly these two classes are known: a subclass may do anything.

    Args:
      optimizer: Any Keras optimizer.
      norm: Whether the norm of the gradient is needed.
      static: Whether shapes must be static, as in a program compiled by XLA. The number of
        different rows is known only at run time.
    """
    known = type(optimizer) in (keras.optimizers.SGD, keras.optimizers.Adagrad)
    clips = optimizer.clipnorm or optimizer.clipvalue or optimizer.global_clipnorm
    if not known or clips or "update_step" in vars(optimizer):
        return "dense"
    if type(optimizer) is keras.optimizers.SGD:
        if optimizer.momentum:
            return "dense"
        if not norm:
            return "repeated"
    return "dense" if static else "merged"


def in_form(gradient: Any, variable: Any, form: Form) -> Any:
    """Brings a gradient into a form, and into the dtype of its variable.

    Dense gradients stay dense. Entries of float16 and bfloat16 are summed in float32, as a matrix
    product sums them.

    Args:
      gradient: Tensor or IndexedSlices, of any shape of the indices.
      variable: The variable that it belongs to.
      form: The form.

    Returns:
      A tensor or IndexedSlices.
    """
    if not isinstance(gradient, tf.IndexedSlices):
        return tf.cast(gradient, variable.dtype)
    half = gradient.dtype.size < tf.float32.size
    if form == "repeated" and not half:
        return gradient
    values = tf.cast(gradient.values, tf.float32) if half else gradient.values
    if form == "dense":
        dense = tf.math.unsorted_segment_sum(values, gradient.indices, variable.shape[0])
        return tf.cast(tf.ensure_shape(dense, variable.shape), gradient.dtype)
    # tf.gather_nd gives indices of any rank.
    rows, entry = tf.unique(tf.reshape(gradient.indices, [-1]))
    entry = tf.reshape(entry, tf.shape(gradient.indices))
    values = tf.math.unsorted_segment_sum(values, entry, tf.size(rows))
    return tf.IndexedSlices(tf.cast(values, gradient.dtype), rows, gradient.dense_shape)
