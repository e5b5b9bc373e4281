"""The penguins: missing labels count nothing, on any number of replicas, with any tasks."""

import itertools
import math

import numpy as np
import pytest
import tensorflow as tf

from tests.examples.harness import (
    assert_same,
    load,
    load_without_tfloss,
    results,
    run,
    train_a_little,
    train_resume_and_export,
)

NAN = math.nan
STATISTICS = {
    "measurements": ([40.0, 17.0, 200.0], [5.0, 2.0, 14.0]),
    "mass": ([4000.0], [800.0]),
    "isotopes": ([8.7, -25.7], [0.5, 0.8]),
}


def _batch(n, seed=0):
    random = np.random.RandomState(seed)
    batch = {
        "measurements": random.randn(n, 3).astype(np.float32) * [5, 2, 14] + [40, 17, 200],
        "island": random.randint(0, 3, n),
        "species": random.randint(0, 3, n),
        "sex": random.randint(-1, 2, n),
        "mass": (4000 + 800 * random.randn(n)).astype(np.float32),
        "isotopes": (random.randn(n, 2) * 0.5 + [8.7, -25.7]).astype(np.float32),
    }
    batch["measurements"] = batch["measurements"].astype(np.float32)
    batch["mass"][: n // 2] = NAN  # so that replicas have unequal numbers of labels
    batch["sex"][n - 2 :] = -1
    batch["isotopes"][1, 0] = batch["measurements"][2, 1] = NAN
    return batch


def _make(**options):
    model = load("penguins/model.py")
    return lambda: model.Penguins(STATISTICS, width=16, **options)


def _data(steps=4, n=8):
    batches = [_batch(n, seed) for seed in range(steps)]
    stacked = {key: np.stack([batch[key] for batch in batches]) for key in batches[0]}
    return tf.data.Dataset.from_tensor_slices(stacked)


@pytest.mark.parametrize(
    ("count", "jit", "uncertainty"),
    [
        (2, False, False),
        (2, False, True),
        (2, True, True),
        pytest.param(2, True, False, marks=pytest.mark.slow),
        pytest.param(4, False, False, marks=pytest.mark.slow),
        pytest.param(4, False, True, marks=pytest.mark.slow),
    ],
)
def test_losses_and_weights_are_those_of_one_replica(count, jit, uncertainty, replicas):
    # What is hidden for the reconstruction is each replica's own.
    make = _make(tasks=("species", "sex", "mass", "isotopes"), uncertainty=uncertainty)
    one = train_a_little(make, _data(), replicas(1), steps=4)
    other = train_a_little(make, _data(), replicas(count), steps=4, jit=jit)
    assert set(one[0]) == {"species", "sex", "mass", "isotopes", "total"}
    assert_same(one, other)


def test_losses_by_hand():
    model = load("penguins/model.py")
    logits = tf.constant([[0.0, 0.0], [2.0, 0.0], [5.0, -5.0]])
    loss = model.cross_entropy(tf.constant([1, 1, -1]), logits)
    np.testing.assert_allclose(loss, (math.log(2) + math.log(1 + math.exp(2))) / 2, rtol=1e-6)
    with tf.GradientTape() as tape:
        guess = tf.Variable([[1.0, 5.0], [3.0, 0.0]])
        loss = model.squared_error(tf.constant([[0.0, NAN], [NAN, 2.0]]), guess)
    np.testing.assert_allclose(loss, (1 + 4) / 2)
    np.testing.assert_allclose(tape.gradient(loss, guess), [[1.0, 0.0], [0.0, -2.0]])


def test_every_choice_of_tasks_has_these_losses_and_these_predictions():
    tasks = load("penguins/model.py").TASKS
    data, batch = _data(1), _batch(8)
    for chosen in itertools.chain(
        itertools.combinations(tasks, 1), itertools.combinations(tasks, 4), [tasks]
    ):
        model = _make(tasks=chosen)()
        assert set(model(batch, training=True)) == set(chosen)
        inputs = {key: batch[key] for key in ("measurements", "island")}
        found = model(inputs, training=False)
        assert set(found) == set(chosen) - {"reconstruction"}
    assert len(list(data)) == 1
    with pytest.raises(ValueError, match="Unknown tasks"):
        _make(tasks=("age",))()


def test_a_penguin_that_was_not_measured_gets_predictions():
    batch = _batch(4)
    batch["measurements"][0] = NAN
    for value in _make()()(batch, training=False).values():
        assert np.isfinite(value).all()


def test_uncertainty_by_hand():
    model = _make(tasks=("mass",), uncertainty=True)()
    model(_batch(8), training=True)
    model.log_variance["mass"].assign(math.log(4.0))
    plain = model.weighted({"mass": tf.constant(3.0)})["mass"]
    np.testing.assert_allclose(plain, 3 / 4 + math.log(4) / 2, rtol=1e-6)


@pytest.mark.slow  # the digits go the same way
def test_from_start_to_saved_model(tmp_path):
    small = [f"--config.data_dir={tmp_path / 'data'}", "--config.model.uncertainty"]

    path, found = train_resume_and_export("penguins/train.py", "penguins", tmp_path, small)

    assert set(found) == {
        "test/species_accuracy", "test/sex_accuracy", "test/mass_error", "test/isotopes_error",
    }  # fmt: skip
    inputs = {"measurements": ([5, 3], "float32"), "island": ([5], "int64")}
    shapes = load_without_tfloss(path, inputs)
    assert shapes == {"species": [5, 3], "sex": [5, 2], "mass": [5], "isotopes": [5, 2]}


@pytest.mark.slow
def test_it_learns_and_a_task_can_be_left_out(tmp_path):
    flags = [f"--config.data_dir={tmp_path / 'data'}"]
    found = results(run("penguins/train.py", "penguins", tmp_path / "all", *flags))
    assert found["test/species_accuracy"] >= 0.97
    assert found["test/sex_accuracy"] >= 0.78
    assert found["test/mass_error"] <= 320
    flags += ["--config.model.tasks=('species',)"]
    found = results(run("penguins/train.py", "penguins", tmp_path / "one", *flags))
    assert set(found) == {"test/species_accuracy"} and found["test/species_accuracy"] >= 0.97
