"""Parts of a pipeline that are not reproducible, or can't be saved, are listed."""

import keras
import pytest
import tensorflow as tf

from tfloss.data.nondeterminism import nondeterministic_inputs, snapshots, unsaveable_inputs

NUMBERS = tf.data.Dataset.range(10)


@pytest.fixture
def unseeded():
    tf.random.set_seed(None)  # which every test starts with


def draw(x):
    return tf.random.uniform([]) + tf.cast(x, tf.float32)


def python(x):
    return tf.numpy_function(lambda x: x, [x], tf.int64)


def shuffled(x):
    return tf.data.Dataset.range(x).shuffle(3)


def disordered(data):
    options = tf.data.Options()
    options.deterministic = False
    return data.with_options(options)


def can_be_saved(data, path):
    iterator = iter(data)
    next(iterator)
    try:
        tf.train.Checkpoint(iterator=iterator).write(str(path / "it"))
    except tf.errors.FailedPreconditionError:
        return False
    return True


CASES = {
    # data set: (why it is not reproducible, without and with a global seed; why it can't be saved)
    "plain": (lambda: NUMBERS.cache().map(lambda x: x + 1).batch(2).prefetch(1), "", "", ""),
    "shuffle": (lambda: NUMBERS.shuffle(3), "ShuffleDataset without a seed", "", ""),
    "seeded": (lambda: NUMBERS.shuffle(3, seed=1), "", "", ""),
    "mixed": (
        lambda: tf.data.Dataset.sample_from_datasets([NUMBERS, NUMBERS]),
        "RandomDataset without a seed",
        "",
        "",
    ),
    "stateless": (
        lambda: NUMBERS.map(lambda x: tf.random.stateless_uniform([], [x, 1]), 4),
        "",
        "",
        "",
    ),
    "random": (lambda: NUMBERS.map(draw), "in draw) without a seed", "", "RandomUniform"),
    "parallel": (
        lambda: NUMBERS.map(draw, num_parallel_calls=2),
        "in draw) in parallel calls: use tf.random.stateless_*",
        "in draw) in parallel calls",
        "RandomUniform",
    ),
    "python": (lambda: NUMBERS.map(python), "", "", "Python code"),
    "parallel python": (
        lambda: NUMBERS.map(python, num_parallel_calls=2),
        "",
        "",
        "Python code",
    ),
    "generator": (
        lambda: tf.data.Dataset.from_generator(lambda: iter([1]), output_signature=SCALAR),
        "",
        "",
        "Python code",
    ),
    "inner": (
        lambda: NUMBERS.flat_map(shuffled),
        "ShuffleDatasetV3 (",
        "",
        "DummySeedGenerator",
    ),
    "keras": (lambda: NUMBERS.map(lambda x: FLIP(tf.ones([2, 2, 1]))), "", "", "AssignVariableOp"),
    "options": (lambda: disordered(NUMBERS), "options().deterministic", "options()", ""),
    "map": (
        lambda: NUMBERS.map(lambda x: x, num_parallel_calls=2, deterministic=False),
        "ParallelMapDataset with deterministic=False",
        "ParallelMapDataset",
        "",
    ),
    "within": (
        lambda: NUMBERS.interleave(
            lambda x: NUMBERS.map(lambda y: y, num_parallel_calls=2, deterministic=False)
        ),
        "ParallelMapDatasetV2 (",
        "ParallelMapDatasetV2 (",
        "",
    ),
}
SCALAR = tf.TensorSpec([], tf.int32)
FLIP = keras.layers.RandomFlip(seed=1)


def check(lines, expected):
    assert bool(lines) == bool(expected), lines
    assert any(expected in one for one in lines) if expected else True, lines


@pytest.mark.parametrize("name", CASES)
def test_irreproducible_inputs_without_a_global_seed(name, unseeded):
    make, expected, _, _ = CASES[name]
    check(nondeterministic_inputs(make()), expected)


@pytest.mark.filterwarnings("ignore:Seed 0 from outer graph")
@pytest.mark.parametrize("name", CASES)
def test_irreproducible_and_unsaveable_inputs_with_a_global_seed(name, tmp_path):
    make, _, expected, unsaveable = CASES[name]
    data = make()
    check(nondeterministic_inputs(data), expected)
    check(unsaveable_inputs(data), unsaveable)
    assert can_be_saved(data, tmp_path) == (not unsaveable)


def test_op_determinism_keeps_the_order():
    for name in ("parallel", "options", "map", "within"):
        assert nondeterministic_inputs(CASES[name][0](), op_determinism=True) == []


def test_the_line_is_that_of_the_users_code():
    (line,) = unsaveable_inputs(NUMBERS.map(draw))
    assert line == f"RandomUniform ({__file__}:{draw.__code__.co_firstlineno + 1}, in draw)"


def test_snapshots_can_not_be_saved_wherever_they_are(tmp_path):
    snapshot = NUMBERS.snapshot(str(tmp_path)).map(lambda x: x + 1)
    inner = NUMBERS.flat_map(lambda x: NUMBERS.snapshot(str(tmp_path / "inner")))
    for data in (snapshot, inner):
        assert unsaveable_inputs(data.batch(2).repeat()) == ["snapshot()"] and snapshots(data)
    assert not snapshots(NUMBERS.cache(str(tmp_path / "cache")))


@pytest.mark.upstream
def test_tensorflow_breaks_a_snapshot_whose_iterator_is_saved_while_it_is_written(tmp_path):
    """If it works, `snapshots` and its users can go. 5 batches are a pass; after 3, it is saved."""
    iterator = iter(NUMBERS.snapshot(str(tmp_path / "data")).repeat().batch(2))
    for _ in range(3):
        next(iterator)
    tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / "saved"))
    with pytest.raises(tf.errors.InternalError, match="Expected 2 components but got 0"):
        for _ in range(10):
            next(iterator)
