"""The cost of merging repeated rows of sparse gradients, for each form and optimizer.

    python benchmarks/sparse_gradients.py

It compares interleaved times of an update of an embedding table: with the sparse gradient as it is,
where Keras squares each entry of a repeated row on its own; with each row once; and with the dense
gradient. It marks what tfloss chooses.
"""

import functools
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from _timing import interleaved, ratio

from tfloss.optimizers.fused_adam import fused_updates
from tfloss.optimizers.sparse_gradients import in_form, sparse_form

FORMS = ("repeated", "merged", "dense")
OPTIMIZERS = {
    "Adam": keras.optimizers.Adam,
    "Adagrad": keras.optimizers.Adagrad,
    "SGD": keras.optimizers.SGD,
    "momentum": lambda: keras.optimizers.SGD(momentum=0.9),
}


def _update(make, form, rows, width):
    """Returns a traced function that updates a table by a sparse gradient."""
    table, optimizer = keras.Variable(np.zeros((rows, width), np.float32)), make()
    optimizer.build([table])

    @tf.function(autograph=False)
    def update(indices, values):
        gradient = tf.IndexedSlices(values, indices, tf.constant([rows, width]))
        with fused_updates(optimizer):
            optimizer.apply([in_form(gradient, table, form)], [table])

    return update


def _five(update, *arguments):
    for _ in range(5):
        update(*arguments)


def main() -> None:
    """Runs the benchmark and prints its results."""
    rng = np.random.default_rng(0)
    for rows, lookups, width in ((1_000, 1_024, 256), (100_000, 4_096, 64)):
        print(f"{lookups} lookups in {rows} rows of {width}: microseconds of an update")
        indices = tf.constant(np.minimum(rng.zipf(1.3, lookups) - 1, rows - 1))
        values = tf.random.normal([lookups, width])
        for name, make in OPTIMIZERS.items():
            calls = {}
            for form in FORMS:
                update = _update(make, form, rows, width)
                calls[form] = functools.partial(_five, update, indices, values)
            seconds = interleaved(calls, rounds=15)
            chosen = sparse_form(make(), norm=False, static=False)
            found = [f"{form} {1e6 * np.median(seconds[form]) / 5:.0f}" for form in FORMS]
            factor = ratio(seconds, chosen, "repeated")[0]
            print(f"  {name}: {', '.join(found)}; chosen: {chosen} (x {factor:.2f})")


if __name__ == "__main__":
    main()
