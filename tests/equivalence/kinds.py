"""The kinds of models that must train to the same weights on any number of replicas.

Each has a loss that goes wrong in a loop which averages the replicas' own losses. All of them
get the same global batches of 16: the valid examples are not equally many in any two of its
eighths, and none in its last quarter.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfloss
from tfloss.data.feed import Feed
from tfloss.engine.engine import Engine
from tfloss.step.trace_options import Mode

STEPS = 20
BATCH = 16
VALID = np.array([1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 0, 1, 0, 0, 0, 0], np.float32)


@dataclasses.dataclass(frozen=True)
class Kind:
    """How one kind is trained.

    loss: `(model, batch, z) -> what the training forward returns`; z is [n, 4].
    options: of the TrainStep.
    mode: in which it is trained, if no other mode is asked for.
    examples: of the data set; its last batch may be short.
    """

    loss: Callable[[Any, Any, tf.Tensor], Any]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    mode: Mode = "graph"
    groups: bool = False
    synchronised: bool = False
    penalties: bool = False
    examples: int = BATCH * STEPS
    agrees: bool = True


def _errors(z, batch):
    return tf.reduce_mean((z - batch["y"]) ** 2, -1)


def _mean(model, batch, z):
    return {"mean": tf.reduce_mean(_errors(z, batch))}


def _masked(model, batch, z):
    return {"masked": tfloss.global_mean(_errors(z, batch), batch["valid"])}


def _local(model, batch, z):
    """Wrong on purpose: each replica divides by its own number of valid examples."""
    valid = batch["valid"]
    total = tf.reduce_sum(_errors(z, batch) * valid)
    return {"masked": tf.math.divide_no_nan(total, tf.reduce_sum(valid))}


def _sampled(model, batch, z):
    """As a detector: what is found decides what counts, differently for two losses."""
    found = tf.stop_gradient(tf.cast(z[:, 0] > 0.0, tf.float32)) * batch["valid"]
    hard = tf.cast(_errors(z, batch) > 1.0, tf.float32)
    return {
        "rpn": {"box": tfloss.global_mean(tf.abs(z[:, 1] - batch["y"][:, 1]), found)},
        "roi": {"class": tfloss.global_mean(_errors(z, batch), hard)},
    }


def _contrastive(model, batch, z):
    """Everybody's embeddings are negatives; the neighbour in the global batch is positive."""
    z = tf.math.l2_normalize(z + batch["y"], -1)
    logits = 2.0 * z @ tf.transpose(tfloss.cross_replica_concat(z))
    first = tf.distribute.get_replica_context().replica_id_in_sync_group * tf.shape(z)[0]
    labels = (tf.range(tf.shape(z)[0]) + first + 1) % tf.shape(logits)[1]
    return {"nce": tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))}


def _grouped(model, batch, z):
    error = _errors(z, batch)
    return {
        "first": {"masked": tfloss.global_mean(error, batch["valid"])},
        "last": {"mean": tf.reduce_mean(tf.abs(z))},
    }


KINDS = {
    "mean over examples": Kind(_mean),
    "masked, different valid counts per replica": Kind(_masked),
    "no valid example on one replica": Kind(_masked, {"clip_norm": 0.5}),
    "sampled, as in a detector": Kind(_sampled),
    "contrastive, negatives of all replicas": Kind(_contrastive),
    "synchronised BatchNormalization": Kind(_masked, synchronised=True),
    "L2 regularizer, ActivityRegularization": Kind(_mean, penalties=True),
    "accumulate=2": Kind(_masked, {"accumulate": 2}),
    "accumulate=4, clipped, averaged": Kind(
        _masked, {"accumulate": 4, "clip_norm": 0.5, "ema": 0.9}
    ),
    "two optimizer groups": Kind(_grouped, groups=True),
    "uneven batches": Kind(_masked, examples=45),
    "compiled by XLA": Kind(_masked, mode="step"),
    "deliberately wrong: a local mean": Kind(_local, agrees=False),
}


class Net(keras.Model):
    """A small network with the loss of one kind."""

    def __init__(self, kind: Kind):
        super().__init__(name="net")
        self.kind = kind
        l2 = keras.regularizers.L2(0.1) if kind.penalties else None
        self.first = keras.layers.Dense(8, "tanh", name="first", kernel_regularizer=l2)
        self.norm = keras.layers.BatchNormalization(synchronized=True, name="norm")
        self.penalty = keras.layers.ActivityRegularization(l2=0.01)
        self.last = keras.layers.Dense(4, name="last")

    def call(self, batch, training=False):
        h = self.first(batch["x"])
        if self.kind.synchronised:
            h = self.norm(h, training=training)
        if self.kind.penalties:
            h = self.penalty(h)
        z = self.last(h)
        return self.kind.loss(self, batch, z) if training else {"z": z}


def data(kind: Kind) -> tf.data.Dataset:
    """The same global batches (or micro-batches of them) for everybody, for ever."""
    random = np.random.RandomState(0)
    x = random.randn(kind.examples, 6).astype(np.float32)
    columns = {"x": x, "y": np.sin(x[:, :4] * 2), "valid": np.resize(VALID, kind.examples)}
    size = BATCH // kind.options.get("accumulate", 1)
    return tf.data.Dataset.from_tensor_slices(columns).batch(size).repeat()


def train(
    kind: Kind, strategy: tf.distribute.Strategy, mode: Mode | None = None
) -> dict[str, np.ndarray]:
    """The weights after 20 steps of SGD, by path."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model = Net(kind)
        optimizer: Any = keras.optimizers.SGD(0.1)
        if kind.groups:
            optimizer = {
                "first": (keras.optimizers.SGD(0.1), model.first),
                "last": (keras.optimizers.SGD(0.05), model.last),
            }
        step = tfloss.TrainStep(model, optimizer, **kind.options)
    feed = Feed(data(kind), strategy, step.accumulate)
    step.build(feed.reader.element_spec)
    engine, source = Engine(step, mode=mode or kind.mode), feed.input.iterator
    if mode == "loop":
        source = feed.input.source("loop")
        source.reads_ahead = True
    done = 0
    while done < STEPS:
        done += engine.run(source, STEPS - done).steps
    return {v.path: v.numpy().copy() for v in model.trainable_variables}


def difference(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """The largest difference of any weight, relative to the largest of its variable."""
    return max(
        float(np.abs(one[path] - other[path]).max() / np.abs(one[path]).max()) for path in one
    )
