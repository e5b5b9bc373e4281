import traceback

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfloss
import tfloss.summary
from tests.toys import Line
from tfloss.errors import DataError, MetricError, ModelError
from tfloss.evaluation.evaluator import Evaluator
from tfloss.evaluation.metrics import metric
from tfloss.forward.context import current_step

# 103 examples in batches of 8: 12 whole batches and one of 7.
VALUES = np.random.RandomState(0).randn(103).astype(np.float32)


def batches(values=VALUES, size=8):
    return tf.data.Dataset.from_tensor_slices({"x": values}).batch(size)


class Seen:
    """A metric in plain Python that keeps every example in order."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.x, self.y = [], []

    def update(self, batch, predictions):
        self.x += batch["x"].tolist()
        self.y += predictions["y"].tolist()

    def result(self):
        return {"count": len(self.x), "sum": {"y": sum(self.y)}}


def evaluate(make_model, metrics, data, strategy, step=0, **options):
    with strategy.scope():
        model = make_model()
        spec = tf.nest.map_structure(lambda s: tf.zeros([1, *s.shape[1:]]), data.element_spec)
        model(spec, training=False)
        return Evaluator(model, metrics, **options).run(data, step), model


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_103_examples_in_batches_of_8_are_each_seen_once(count, replicas):
    seen = Seen()
    metrics = {
        "mean": metric(keras.metrics.Mean(), lambda batch, p: p["y"]),
        "mse": metric(
            keras.metrics.MeanSquaredError(), lambda b, p: (b["x"][:, None], 2.0 * p["y"][:, None])
        ),
        "big": metric(
            keras.metrics.Mean(),
            lambda b, p: {"values": b["x"], "sample_weight": tf.cast(b["x"] > 1.0, tf.float32)},
        ),
        "seen": seen,
    }
    found, _ = evaluate(Line, metrics, batches(), replicas(count))
    assert seen.x == VALUES.tolist()  # each once, in order
    assert found["seen/count"] == 103.0
    assert found["seen/sum/y"] == pytest.approx(VALUES.sum(dtype=np.float64), rel=1e-5)
    assert found["mean"] == pytest.approx(VALUES.mean(dtype=np.float64), rel=1e-5)
    assert found["mse"] == pytest.approx((VALUES**2).mean(dtype=np.float64), rel=1e-5)
    assert found["big"] == pytest.approx(VALUES[VALUES > 1].mean(dtype=np.float64), rel=1e-5)


@pytest.mark.parametrize("size", [1, 3])
def test_batches_smaller_than_the_replicas(size, replicas):
    found, _ = evaluate(Line, {"seen": Seen()}, batches(VALUES[:7], size), replicas(4))
    assert found["seen/count"] == 7.0


@pytest.mark.parametrize("method", ["reset", "reset_state"])
def test_a_metric_in_plain_python_starts_each_evaluation_anew(method):
    class Sum:
        total = 0.0

        def update(self, batch, predictions):
            self.total += float(predictions["y"].sum())

        def result(self):
            return self.total

    setattr(Sum, method, lambda self: setattr(self, "total", 0.0))
    evaluator = Evaluator(Line(), {"sum": Sum()})
    data = batches(np.float32([1, 4]))
    assert [evaluator.run(data)["sum"] for _ in range(3)] == [5.0, 5.0, 5.0]


def test_metrics_are_reset_before_each_evaluation(replicas):
    mean = metric(keras.metrics.Mean(), lambda batch, p: p["y"])
    evaluator = None
    with replicas(2).scope():
        model = Line()
        model({"x": tf.zeros([1])})
        evaluator = Evaluator(model, {"mean": mean, "seen": Seen()})
    first = evaluator.run(batches())
    assert evaluator.run(batches()) == first


@pytest.mark.parametrize("count", [1, 2])
def test_metrics_made_under_the_strategy_work_too(count, replicas):
    strategy = replicas(count)
    with strategy.scope():
        mean = metric(keras.metrics.Mean(), lambda batch, p: p["y"])
    found, _ = evaluate(Line, {"mean": mean}, batches(), strategy)
    assert found["mean"] == pytest.approx(VALUES.mean(dtype=np.float64), rel=1e-5)


def test_a_vector_valued_metric_is_numbered(replicas):
    f1 = metric(keras.metrics.F1Score(), lambda b, p: (tf.eye(2), tf.eye(2)))
    found, _ = evaluate(Line, {"f1": f1}, batches(), replicas(1))
    assert found == {"f1/0": 1.0, "f1/1": 1.0}


def test_nests_of_ragged_and_string_tensors(replicas):
    class Model(keras.Model):
        def call(self, batch, training=False):
            words, numbers = batch
            return tf.reduce_sum(numbers, -1) + tf.cast(tf.strings.length(words), tf.float32)

    ragged = tf.ragged.constant([[1.0], [2.0, 3.0], [], [4.0], [5.0]])
    data = tf.data.Dataset.from_tensor_slices((["a", "b", "cc", "d", ""], ragged)).batch(4)
    for count in (1, 2):
        mean = metric(keras.metrics.Sum(), lambda batch, p: p)
        with replicas(count).scope():
            found = Evaluator(Model(), {"sum": mean}).run(data)
        assert found["sum"] == 20.0


# Validation losses


class _Stateful(keras.Model):
    def __init__(self):
        super().__init__(name="net")
        self.bn = keras.layers.BatchNormalization()
        self.drop = keras.layers.Dropout(0.5, seed=1)
        self.dense = keras.layers.Dense(1, kernel_initializer="ones")

    def call(self, batch, training=False):
        x = self.bn(batch["x"][:, None], training=training)
        y = self.dense(x)[:, 0]
        if training:
            self.add_loss(tf.reduce_mean(batch["x"]))
            self.drop(x, training=True)
            return {"y": tf.reduce_mean(y**2)}
        return {"y": y}


@pytest.mark.promise(29)
@pytest.mark.parametrize("count", [1, 2])
def test_validation_losses_change_no_state(count, replicas):
    strategy = replicas(count)
    data = batches()
    with strategy.scope():
        model = _Stateful()
        model({"x": tf.zeros([2])}, training=True)
        before = [v.numpy() for v in model.variables]
        evaluator = Evaluator(model, {}, losses=True)
    found = evaluator.run(data)
    assert evaluator.run(data) == found
    for variable, value in zip(model.variables, before, strict=True):
        for local in strategy.experimental_local_results(variable.value):
            np.testing.assert_array_equal(local.numpy(), value)
    assert set(found) == {"losses/y", "losses/net", "losses/total"}
    # The mean over examples, although the last batch is shorter and is split unevenly.
    assert found["losses/net"] == pytest.approx(VALUES.mean(dtype=np.float64), rel=1e-4)
    assert found["losses/total"] == pytest.approx(found["losses/net"] + found["losses/y"])


def test_summaries_and_losses_of_the_inference_forward_are_dropped(replicas):
    class Model(Line):
        def call(self, batch, training=False):
            tfloss.summary.scalar("a", 1.0)
            self.add_loss(tf.reduce_mean(batch["x"]))
            return {"y": tf.zeros_like(batch["x"]) + tf.cast(current_step(), tf.float32)}

    mean = metric(keras.metrics.Mean(), lambda b, p: p["y"])
    found, _ = evaluate(Model, {"step": mean}, batches(), replicas(2), step=17)
    assert found == {"step": 17.0}


# Each example counts once


@pytest.mark.promise(40)
@pytest.mark.parametrize("count", [1, 2])
def test_vectors_of_predictions_count_by_example_not_by_batch(count, replicas):
    # Errors 0 0 0 0 | 8 8 8: 24 / 7 = 3.4286. The mean of the batches is 4.
    data = tf.data.Dataset.from_tensor_slices({"x": np.float32([0, 0, 0, 0, 8, 8, 8])}).batch(4)
    vectors = lambda b, p: (tf.zeros_like(b["x"]), p["y"])  # noqa: E731
    metrics = {
        "mae": metric(keras.metrics.MeanAbsoluteError(), vectors),
        "mse": metric(keras.metrics.MeanSquaredError(), vectors),
        "hinge": metric(
            keras.metrics.Hinge(), lambda b, p: (tf.ones_like(b["x"]), -p["y"])
        ),  # 1 1 1 1 | 9 9 9
        "weighted": metric(
            keras.metrics.MeanAbsoluteError(), lambda b, p: (*vectors(b, p), 1.0 + b["x"])
        ),
    }
    found, _ = evaluate(Line, metrics, data, replicas(count))
    assert found == {
        "mae": pytest.approx(24 / 7),
        "mse": pytest.approx(192 / 7),
        "hinge": pytest.approx(31 / 7),
        "weighted": pytest.approx(3 * 8 * 9 / (4 + 3 * 9)),
    }


class _Masked(keras.Model):
    """Gives word vectors of which Keras masks those of word 0."""

    def __init__(self):
        super().__init__(name="masked")
        self.words = keras.layers.Embedding(4, 1, mask_zero=True, embeddings_initializer="ones")

    def call(self, batch, training=False):
        return {"y": self.words(batch["x"])}


@pytest.mark.parametrize("count", [1, 2])
def test_masked_words_do_not_count(count, replicas):
    words = np.int32([[1, 0, 0, 0], [1, 2, 0, 0], [1, 2, 3, 3]])
    error = np.where(words == 0, 100.0, words).astype(np.float32)
    data = tf.data.Dataset.from_tensor_slices({"x": words, "error": error}).batch(3)
    mae = metric(
        keras.metrics.MeanAbsoluteError(), lambda b, p: (1.0 + b["error"][..., None], p["y"])
    )
    with replicas(count).scope():
        evaluator = Evaluator(_Masked(), {"mae": mae})
    # 1, 1, 2, 1, 2, 3 and 3 are seven words; padding would add 5 x 100.
    assert evaluator.run(data)["mae"] == pytest.approx(13 / 7)


class _Certain(keras.Model):
    """Gives probabilities that are rounded to 0 and 1: their logits are far apart."""

    def __init__(self, activation, shape):
        super().__init__(name="certain")
        self.activation, self.shape = activation, shape

    def call(self, batch, training=False):
        return {"p": self.activation(tf.reshape(batch["x"], self.shape))}


@pytest.mark.promise(56)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    ("activation", "shape", "cross_entropy"),
    [
        (keras.activations.softmax, [-1, 2], keras.metrics.SparseCategoricalCrossentropy),
        (tf.nn.softmax, [-1, 2], keras.metrics.SparseCategoricalCrossentropy),
        (keras.activations.sigmoid, [-1, 1], keras.metrics.BinaryCrossentropy),
        (keras.activations.sigmoid, [-1], keras.metrics.BinaryCrossentropy),
        (tf.nn.sigmoid, [-1], keras.metrics.BinaryCrossentropy),
    ],
)
def test_a_cross_entropy_is_computed_of_the_logits(
    activation, shape, cross_entropy, count, replicas
):
    """As in `keras.Model.evaluate`. Of float32 probabilities it would end at 16."""
    logits = np.float32([50, 30, -20, -40, 60])
    rows = np.stack([np.zeros_like(logits), logits], 1) if shape[-1] == 2 else logits[:, None]
    labels = np.int32([0, 0, 0, 1, 1])
    data = tf.data.Dataset.from_tensor_slices({"x": rows, "y": labels}).batch(4)
    bound = metric(
        cross_entropy(),
        lambda b, p: (b["y"] if len(shape) == 1 or shape[-1] == 2 else b["y"][:, None], p["p"]),
    )
    with replicas(count).scope():
        evaluator = Evaluator(_Certain(activation, shape), {"loss": bound})
    # log(1 + exp(50)), 30, exp(-20), 40 and exp(-60)
    assert evaluator.run(data)["loss"] == pytest.approx((50 + 30 + 40) / 5, abs=1e-6)


@pytest.mark.parametrize("count", [1, 2])
def test_a_softmax_over_the_examples_keeps_its_values(count, replicas):
    data = tf.data.Dataset.from_tensor_slices({"x": np.zeros(4, np.float32)}).batch(4)
    bound = metric(keras.metrics.Mean(), lambda b, p: p["p"])
    with replicas(count).scope():
        evaluator = Evaluator(_Certain(tf.nn.softmax, [-1]), {"mean": bound})
    assert evaluator.run(data)["mean"] == pytest.approx(count / 4)  # of the part's examples


# Each forward runs only for who needs it


class _Generator(keras.Model):
    """Trains on pictures, and generates from latents."""

    def __init__(self):
        super().__init__(name="generator")
        self.w = self.add_weight(name="w", shape=(), initializer="ones")

    def call(self, batch, training=False):
        if training:
            return {"reconstruction": self.w * tf.reduce_mean(batch["picture"])}
        return self.w * batch["latent"]


def _data_of(key):
    return tf.data.Dataset.from_tensor_slices({key: np.float32([1, 2, 3, 4, 5])}).batch(2)


class _CountExamples:
    def reset(self):
        self.count = 0

    def update(self, batch):
        self.count += len(batch["picture"])

    def result(self):
        return self.count


@pytest.mark.parametrize("count", [1, 2])
def test_validation_losses_alone_do_not_run_the_inference_forward(count, replicas):
    with replicas(count).scope():
        model = _Generator()
        of_batch = metric(keras.metrics.Mean(), lambda b, p: b["picture"])
        only_losses = Evaluator(model, {}, losses=True)
        metrics = {"mean": of_batch, "count": _CountExamples()}
        of_batches = Evaluator(model, metrics, losses=True)
    losses = {"losses/reconstruction": 3.0, "losses/total": 3.0}
    assert only_losses.run(_data_of("picture")) == losses
    assert of_batches.run(_data_of("picture")) == {"mean": 3.0, "count": 5.0, **losses}


@pytest.mark.parametrize("count", [1, 2])
def test_metrics_alone_do_not_run_the_training_forward(count, replicas):
    with replicas(count).scope():
        mean = metric(keras.metrics.Mean(), lambda b, p: p)
        evaluator = Evaluator(_Generator(), {"mean": mean})
    assert evaluator.run(_data_of("latent")) == {"mean": 3.0}


# What is refused


def test_an_empty_or_infinite_data_set_is_rejected(replicas):
    evaluator = Evaluator(Line(), {"seen": Seen()})
    with pytest.raises(DataError, match="empty"):
        evaluator.run(batches(VALUES[:0]))
    with pytest.raises(DataError, match="infinite data set"):
        evaluator.run(batches().repeat())


def test_tensors_with_different_first_dimensions_are_not_split(replicas):
    data = tf.data.Dataset.from_tensors({"x": tf.ones([4]), "z": tf.ones([3])})
    mean = {"mean": metric(keras.metrics.Mean(), lambda batch, p: p["y"])}
    assert evaluate(Line, mean, data, replicas(1))[0] == {"mean": 1.0}
    with pytest.raises(DataError, match=r"over 2 replicas: batch\['x'\] 4, batch\['z'\] 3"):
        evaluate(Line, mean, data, replicas(2))


def _picky(b, p):
    return (b["label"], p["y"])


@pytest.mark.parametrize("count", [1, 2])
def test_a_metric_that_needs_a_missing_key_is_named(count, replicas):
    metrics = {"fine": Seen(), "acc": metric(keras.metrics.MeanSquaredError(), _picky)}
    with pytest.raises(MetricError) as e:
        evaluate(Line, metrics, batches(), replicas(count))
    lines = str(e.value).splitlines()
    assert lines[0] == "Metric 'acc' failed with KeyError: 'label'"
    assert lines[1].startswith(f"  at: {__file__}:") and lines[1].endswith("(in _picky)")
    assert lines[2:] == ["  batch: {'x': float32 [8]}", "  predictions: {'y': float32 [8]}"]
    assert isinstance(e.value.__cause__, KeyError)
    assert "_picky" in "".join(traceback.format_exception(e.value))  # the line that asked


def test_a_failing_metric_in_plain_python_is_named():
    class Fails(Seen):
        def update(self, batch, predictions):
            raise RuntimeError("no boxes")

    with pytest.raises(MetricError, match=r"(?s)'map' failed with RuntimeError: no boxes.*\[8\]"):
        Evaluator(Line(), {"map": Fails()}).run(batches())


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (lambda: 1 / 0, "ZeroDivisionError"),
        (lambda: None, "TypeError"),
        (lambda: "x", "ValueError"),
    ],
)
def test_a_metric_without_a_result_is_named(result, why):
    seen = Seen()
    seen.result = result
    with pytest.raises(MetricError, match=rf"'seen' failed in result\(\) with {why}"):
        Evaluator(Line(), {"seen": seen}).run(batches())


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_global_mean_is_the_same_validation_loss_on_uneven_parts(count, replicas):
    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="model")
            self.w = self.add_weight(name="w", shape=(), initializer="ones")

        def call(self, batch, training=False):
            y = self.w * batch["x"]
            return {"mean": tfloss.global_mean(y)} if training else y

    values = np.array([1, 4, 9, 16, 25], np.float32)
    with (strategy := replicas(count)).scope():
        evaluator = Evaluator(Model(), {}, losses=True)
    data = tf.data.Dataset.from_tensor_slices({"x": values}).batch(5)
    assert strategy and evaluator.run(data)["losses/mean"] == pytest.approx(11.0)


class _Host:
    def reset(self):
        self.seen = None

    def update(self, batch, predictions):
        self.seen = predictions

    def result(self):
        return 1.0


@pytest.mark.parametrize("count", [1, 2])
def test_scalar_predictions_are_rejected(count, replicas):
    class Model(keras.Model):
        def call(self, batch, training=False):
            return {"y": batch["x"], "t": tf.reduce_mean(batch["x"])}

    with replicas(count).scope():
        evaluator = Evaluator(Model(), {"m": _Host()})
    data = tf.data.Dataset.from_tensor_slices({"x": np.ones(4, "f")}).batch(4)
    with pytest.raises(ModelError, match=r"prediction \['t'\] is a scalar"):
        evaluator.run(data)


def test_predictions_with_shapes_that_differ_between_replicas_are_rejected(replicas):
    class Model(keras.Model):
        def call(self, batch, training=False):
            return tf.RaggedTensor.from_row_lengths(
                tf.range(tf.reduce_sum(batch["n"])), batch["n"]
            ).to_tensor()

    with replicas(2).scope():
        evaluator = Evaluator(Model(), {"m": _Host()})
    data = tf.data.Dataset.from_tensor_slices({"n": [1, 2, 3, 4]}).batch(4)
    with pytest.raises(ModelError, match="shapes differ in more than the first dimension"):
        evaluator.run(data)


@pytest.mark.parametrize("count", [1, 2])
def test_sparse_tensors_and_none(count, replicas):
    class Model(keras.Model):
        def call(self, batch, training=False):
            return {"y": tf.sparse.to_dense(batch["s"]), "nothing": None}

    with replicas(count).scope():
        evaluator = Evaluator(Model(), {"m": (host := _Host())})
    sparse = tf.sparse.from_dense(np.eye(5, dtype="f"))
    data = tf.data.Dataset.from_tensor_slices({"s": sparse}).batch(5)
    evaluator.run(data.map(lambda b: {**b, "none": None}))
    np.testing.assert_array_equal(host.seen["y"], np.eye(5))
    assert host.seen["nothing"] is None
