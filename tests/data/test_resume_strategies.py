"""Each kind of data gets the best strategy that it allows."""

import numpy as np
import pytest
import tensorflow as tf

from tfloss.data.batch_reader import BatchReader
from tfloss.data.resume_strategies import ReadAgain, SavedIterator, Seek, resume_strategy
from tfloss.data.source import Source

ONE = tf.distribute.get_strategy()


def shuffled():
    return tf.data.Dataset.range(40).shuffle(40, seed=1).batch(2)


def generated():
    signature = tf.TensorSpec([], tf.int64)
    return tf.data.Dataset.from_generator(lambda: iter(range(40)), output_signature=signature)


def source():
    return Source(np.arange(40), batch_size=2, seed=1)


def values(iterator, count):
    return [np.asarray(next(iterator)).tolist() for _ in range(count)]


@pytest.mark.parametrize(
    ("data", "expected", "reason"),
    [
        (source, Seek, ""),
        (shuffled, SavedIterator, ""),
        (
            lambda: generated().batch(2),
            ReadAgain,
            "no checkpoint can hold the state of Python code",
        ),
    ],
)
def test_which_strategy_is_chosen(data, expected, reason):
    strategy = resume_strategy(BatchReader(data(), ONE))
    assert type(strategy) is expected
    assert strategy.reason.startswith(reason)
    assert strategy.records == (expected is SavedIterator)


def test_data_that_are_cut_over_replicas_are_read_again(replicas):
    strategy = resume_strategy(BatchReader(shuffled(), replicas(2)))
    assert type(strategy) is ReadAgain
    assert strategy.reason == "it is cut over several replicas"
    assert strategy.first is not None
    assert type(resume_strategy(BatchReader(source(), replicas(2)))) is Seek


@pytest.mark.parametrize("data", [source, shuffled])
def test_a_snapshot_brings_the_data_back(data):
    strategy = resume_strategy(BatchReader(data(), ONE))
    iterator = strategy.open(0)
    values(iterator, 3)
    strategy = strategy.record(iterator, 3)
    restore = strategy.snapshot(iterator, 3)
    following = values(iterator, 6)
    iterator = restore()
    assert values(iterator, 6) == following


def test_nothing_brings_a_generator_back():
    strategy = resume_strategy(BatchReader(generated().batch(2), ONE))
    iterator = strategy.open(0)
    assert strategy.snapshot(iterator, 0) is None
    assert strategy.record(iterator, 0) is strategy
    assert strategy.saved(7) == ({}, 7)
    assert not strategy.restore(iterator, {"a": b""})


def test_no_state_is_recorded_before_the_file_of_a_cache_is_complete(tmp_path):
    data = tf.data.Dataset.range(40).cache(f"{tmp_path}/cache").batch(2).repeat()
    strategy = resume_strategy(BatchReader(data, ONE))
    iterator = strategy.open(0)
    values(iterator, 3)
    assert strategy.record(iterator, 3) is strategy
    assert strategy.snapshot(iterator, 3) is None
    assert strategy.saved(3) == ({}, 3)
    assert len(list(tmp_path.glob("*.lockfile"))) == 1  # it is still filled in one piece
    values(iterator, 18)
    strategy.record(iterator, 21)
    files, skip = strategy.saved(23)
    assert files and skip == 2


def test_a_state_that_is_too_large_changes_the_strategy(monkeypatch):
    monkeypatch.setattr("tfloss.data.resume_strategies.MAX_STATE_BYTES", 100)
    strategy = resume_strategy(BatchReader(shuffled(), ONE))
    iterator = strategy.open(0)
    values(iterator, 1)
    changed = strategy.record(iterator, 1)
    assert type(changed) is ReadAgain and "state takes" in changed.reason


def test_what_a_resumed_run_will_not_see_again():
    def unseeded():
        return tf.data.Dataset.range(40).shuffle(40).batch(2)

    tf.random.set_seed(None)  # a global seed would seed the shuffle
    reader = BatchReader(unseeded(), ONE)
    assert SavedIterator(reader).irreproducible(op_determinism=False) == []  # its state is saved
    (found,) = ReadAgain(reader, "").irreproducible(op_determinism=False)
    assert "without a seed" in found
    unordered = unseeded().map(lambda x: x, num_parallel_calls=2, deterministic=False)
    (found,) = SavedIterator(BatchReader(unordered, ONE)).irreproducible(op_determinism=False)
    assert "deterministic=False" in found
    assert Seek(BatchReader(source(), ONE)).irreproducible(op_determinism=False) == []
