"""A batch whose tensors differ in their first dimension is divided as declared, or refused."""

import collections
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
from tfloss.data import BatchLayout
from tfloss.data.batch_division import (
    assert_comparable,
    check_divisible,
    data_error,
    part_of,
    split,
)
from tfloss.data.batch_layout import ROWS_ARE_EXAMPLES
from tfloss.errors import DataError

LABELLED = np.arange(4, dtype=np.float32)  # mean 1.5
UNLABELLED = np.arange(12, dtype=np.float32)  # mean 5.5
BATCH = {"labelled": LABELLED, "unlabelled": UNLABELLED}
BY_LABELLED = BatchLayout(examples="labelled")
SIZES = r"batch\['labelled'\] 4, batch\['unlabelled'\] 12"


def constants(**arrays):
    return {key: tf.constant(value) for key, value in arrays.items()}


def open_sizes(batches):
    """A data set whose first dimensions are not static."""
    spec = {key: tf.TensorSpec([None]) for key in batches[0]}
    return tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=spec)


class Means(keras.Model):
    """The sum of the means of all tensors, times w, which is 1 at the start."""

    def __init__(self):
        super().__init__()
        self.w = self.add_weight(shape=(), initializer="ones", name="w")
        self.built = True  # where a step calls only the weight

    def call(self, batch, training=False):
        if not training:
            return self.w * batch[next(iter(batch))]
        return {key: self.w * tf.reduce_mean(value) for key, value in batch.items()}


def trained(strategy, data, *, model=Means, jit=False, steps=1, **options):
    """The trainer and the losses of the last step, with SGD at a rate of 0.1."""
    with strategy.scope():
        net, optimizer = model(), keras.optimizers.SGD(0.1)
    trainer = tfloss.Trainer(
        net, optimizer, strategy=strategy, jit=jit, default_hooks=False, log_every=1, **options
    )
    return trainer, trainer.train(data, steps=steps).losses


@pytest.mark.promise(37)
@pytest.mark.parametrize(
    ("count", "jit", "static"),
    [(1, "loop", True), (2, False, True), (2, True, False), (3, False, False)],
)
def test_each_tensor_is_divided_by_its_own_first_dimension(count, jit, static, replicas):
    """On 3 replicas, they have 2, 1 and 1 examples: 3 unlabelled images for each labelled one."""
    data = tf.data.Dataset.from_tensors(BATCH) if static else open_sizes([BATCH])
    trainer, losses = trained(replicas(count), data, jit=jit, batch_layout=BY_LABELLED)
    assert losses == pytest.approx({"labelled": 1.5, "unlabelled": 5.5, "total": 7.0})
    assert float(trainer.model.w.numpy()) == pytest.approx(1 - 0.1 * 7.0)
    found = trainer.evaluate(data, losses=True)  # w is 0.3
    assert found["losses/total"] == pytest.approx(0.3 * 7.0)


@pytest.mark.promise(37)
@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("batch", [BATCH, {"x": UNLABELLED, "class_weight": LABELLED}])
def test_nothing_is_cut_that_was_not_declared(batch, static, replicas):
    data = tf.data.Dataset.from_tensors(batch) if static else open_sizes([batch])
    with pytest.raises(DataError) as error:
        trained(replicas(2), data)
    assert "can't be divided over 2 replicas" in str(error.value)
    for key, value in batch.items():
        assert f"batch['{key}'] {len(value)}" in str(error.value)
    assert "batch_layout=tfloss.data.BatchLayout(examples=..., whole=...)" in str(error.value)


@pytest.mark.promise(37)
@pytest.mark.parametrize(("count", "jit"), [(1, False), (2, False), (2, True)])
def test_each_replica_gets_all_of_what_is_whole(count, jit, replicas):
    """The sum of 10 class weights is 45, on any number of replicas."""

    class Net(Means):
        def call(self, batch, training=False):
            return self.w * tf.reduce_sum(batch["class_weight"]) * tf.reduce_mean(batch["x"])

    batch = {"x": np.arange(32, dtype=np.float32), "class_weight": np.arange(10, dtype=np.float32)}
    data = tf.data.Dataset.from_tensors(batch)
    layout = BatchLayout(whole="class_weight")
    _, losses = trained(replicas(count), data, model=Net, jit=jit, batch_layout=layout)
    assert losses["loss"] == pytest.approx(45 * 15.5)


@pytest.mark.parametrize("jit", [False, True])
def test_micro_batches_count_as_declared_or_are_refused(jit):
    """2 and 4 labelled examples with means 0.5 and 1.5: 7/6. Both have the same 12 others."""
    batches = [{**BATCH, "labelled": LABELLED[:2]}, BATCH]
    options = {"jit": jit, "accumulate": 2}
    one = tf.distribute.get_strategy()
    _, losses = trained(one, open_sizes(batches), batch_layout=BY_LABELLED, **options)
    assert losses == pytest.approx({"labelled": 7 / 6, "unlabelled": 5.5, "total": 7 / 6 + 5.5})
    with pytest.raises(DataError, match=r"unclear how much each batch counts: .*'\] 2, .*'\] 4, "):
        trained(one, open_sizes(batches), **options)
    # In one proportion nothing is unclear: (0.5 * 2 + 1.5 * 4) / 6.
    batches[0]["unlabelled"] = UNLABELLED[:6]
    assert trained(one, open_sizes(batches), **options)[1]["labelled"] == pytest.approx(7 / 6)


def test_graphs_train_and_evaluate_on_one_replica():
    """Nodes and edges: every batch counts once, until nodes are declared to be the examples."""
    graphs = [
        {"nodes": np.ones(2, np.float32), "edges": np.ones(3, np.float32)},
        {"nodes": np.full(6, 3.0, np.float32), "edges": np.ones(5, np.float32)},
    ]
    one = tf.distribute.get_strategy()
    trainer, _ = trained(one, open_sizes(graphs), steps=2)
    w = float(trainer.model.w.numpy())
    with pytest.warns(UserWarning, match=r"every batch counts once.*\['nodes'\] 2"):
        found = trainer.evaluate(open_sizes(graphs), losses=True)
    assert found["losses/nodes"] == pytest.approx(w * (1 + 3) / 2)
    layout = BatchLayout(examples="nodes")
    trainer, _ = trained(one, open_sizes(graphs), steps=2, batch_layout=layout)
    found = trainer.evaluate(open_sizes(graphs), losses=True)
    assert found["losses/nodes"] == pytest.approx(w * (2 * 1 + 6 * 3) / 8)


Pair = collections.namedtuple("Pair", "x rest")


class Masked(tf.experimental.ExtensionType):
    x: tf.Tensor
    mask: tf.Tensor


class AnyNest(tfloss.TrainStep):
    """Keras takes no extension types, so the forward is one of its own."""

    def forward(self, batch):
        return {"mean": self.model.w * _mean(batch)}


def _mean(batch):
    leaves = [one for one in tf.nest.flatten(batch, expand_composites=True) if one is not None]
    return tf.add_n([tf.reduce_mean(tf.cast(one, tf.float32)) for one in leaves])


X = tf.reshape(tf.range(8.0), [4, 2])  # mean 3.5
NESTS = {
    "None": {"x": X, "none": None},
    "None alone in a tuple": (None, X),
    "namedtuple": Pair(X, Pair(X, None)),
    "tuples": ((X, (X,), ()), {"a": (X, None)}),
    "one in a tuple": ((X, X),),
    "extension type": {"x": X, "masked": Masked(x=X, mask=X > 3)},
    "extension type alone": Masked(x=X, mask=X > 3),
}


@pytest.mark.parametrize("name", NESTS)
def test_any_nest_trains_on_several_replicas_as_on_one(name, replicas):
    data = tf.data.Dataset.from_tensors(NESTS[name])
    for count, jit in ((1, False), (2, False), (2, True)):
        _, losses = trained(replicas(count), data, jit=jit, train_step=AnyNest)
        assert losses["mean"] == pytest.approx(float(_mean(NESTS[name]))), (count, jit)


def test_what_has_no_examples_is_refused_on_several_replicas():
    spec = {"x": tf.TensorSpec([4]), "inner": tf.data.DatasetSpec(tf.TensorSpec([]))}
    check_divisible(ROWS_ARE_EXAMPLES, spec, 1)
    with pytest.raises(DataError, match=r"batch\['inner'\] is a Dataset, which has no examples"):
        check_divisible(ROWS_ARE_EXAMPLES, spec, 2)


@pytest.mark.parametrize(
    ("labelled", "unlabelled", "parts", "divides"),
    [
        (4, 12, 3, True),  # 3 for each
        (4, 6, 2, True),  # 2 and 3 on each
        (4, 6, 4, False),
        (3, 6, 2, True),  # 2 and 1, with 2 for each
        (3, 7, 2, False),
        (0, 0, 2, True),
        (0, 4, 3, False),
    ],
)
def test_sizes_that_divide(labelled, unlabelled, parts, divides):
    """Traced and eager code agree, and the parts hold each row once, in order."""
    batch = constants(labelled=np.arange(labelled), unlabelled=np.arange(unlabelled))
    spec = {key: tf.TensorSpec([None], value.dtype) for key, value in batch.items()}

    @tf.function(input_signature=[spec, tf.TensorSpec([], tf.int32)])
    def traced(batch, index):
        return part_of(BY_LABELLED, batch, parts, index)

    def eager(batch, index):
        return part_of(BY_LABELLED, batch, parts, int(index))

    for function in (traced, eager):
        if not divides:
            with pytest.raises((DataError, tf.errors.InvalidArgumentError)) as error:
                function(batch, tf.constant(0))
            found = data_error(error.value) or error.value
            assert re.search(rf"'\] {labelled}, batch.*'\] {unlabelled}, and batch", str(found))
            continue
        found = [function(batch, tf.constant(index)) for index in range(parts)]
        for key, value in batch.items():
            joined = np.concatenate([one[key].numpy() for one in found])
            np.testing.assert_array_equal(joined, value.numpy())
        shares = [(len(one["labelled"]), len(one["unlabelled"])) for one in found]
        assert all(a * unlabelled == b * labelled for a, b in shares)


def test_few_examples_and_scalars_are_not_split():
    assert len(split(ROWS_ARE_EXAMPLES, {"x": tf.range(2)}, 3)) == 1
    assert len(split(ROWS_ARE_EXAMPLES, tf.constant(1.0), 2)) == 1
    parts = split(ROWS_ARE_EXAMPLES, {"x": tf.range(5), "t": tf.constant(0.5)}, 2)
    assert [one["x"].numpy().tolist() for one in parts] == [[0, 1, 2], [3, 4]]
    assert all(one["t"] == 0.5 for one in parts)
    with pytest.raises(DataError, match=SIZES):
        split(ROWS_ARE_EXAMPLES, constants(**BATCH), 2)


def test_static_sizes_stay_static():
    seen = []

    spec = {key: tf.TensorSpec([len(BATCH[key])]) for key in BATCH}

    @tf.function(input_signature=[spec, tf.TensorSpec([], tf.int32)])
    def trace(batch, index):
        for parts in (2, 3):
            seen.append(part_of(BY_LABELLED, batch, parts, index, static=True))

    trace(constants(**BATCH), tf.constant(0))
    shapes = [{key: one[key].shape.as_list() for key in BATCH} for one in seen]
    assert shapes[0] == {"labelled": [2], "unlabelled": [6]}
    assert shapes[1]["labelled"] == [None]


def test_static_micro_batches_that_can_not_be_compared_are_refused():
    sizes = [{"batch[0]": 1, "batch[1]": 2}, {"batch[0]": 2, "batch[1]": 3}]
    with pytest.raises(DataError, match=r"batch\[0\] 1, batch\[1\] 2, then batch\[0\] 2"):
        assert_comparable(ROWS_ARE_EXAMPLES, sizes)
    assert assert_comparable(BatchLayout("0"), sizes) == []
    assert data_error(ValueError("another error")) is None


@pytest.mark.promise(37)
@pytest.mark.upstream
def test_tensorflow_cuts_class_weights(replicas):
    """`fit` under several replicas divides its batches in this way."""
    strategy = replicas(2)
    data = tf.data.Dataset.from_tensors({"x": tf.zeros([32]), "class_weight": tf.range(10)})
    batch = next(iter(strategy.experimental_distribute_dataset(data)))
    parts = strategy.experimental_local_results(batch["class_weight"])
    assert [part.numpy().tolist() for part in parts] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
