"""A resumed run continues at its position in the data, whatever the data are."""

import warnings

import numpy as np
import pytest
import tensorflow as tf

from tfloss.common.logger import ChiefLogger
from tfloss.data.feed import Feed
from tfloss.data.position import IteratorStates, iterator_files
from tfloss.data.source import Source
from tfloss.errors import DataError

ONE = tf.distribute.get_strategy()


def shuffled(count=100, batch=2, seed=3):
    data = tf.data.Dataset.range(count).shuffle(20, seed=seed).repeat()
    return data.batch(batch, drop_remainder=True).prefetch(2)


def batches(feed, count):
    local = feed.reader.strategy.experimental_local_results
    return [
        np.concatenate([np.asarray(part) for part in local(next(feed.input.iterator))]).tolist()
        for _ in range(count)
    ]


def resumed(make, state, files, strategy=ONE):
    feed = Feed(make(), strategy)
    feed.resume(state, files, ChiefLogger())
    return feed


def trained(make, steps, strategy=ONE):
    """A feed of which so many batches were trained on, its state, and the batches after that."""
    feed = Feed(make(), strategy)
    batches(feed, steps)
    feed.trained(steps)
    state, files = feed.state()
    return state, files, batches(feed, 30)


@pytest.mark.promise(19)
@pytest.mark.parametrize("steps", [0, 1, 7, 130])
def test_an_iterator_continues_in_the_middle_of_its_shuffle_buffer(steps):
    state, files, rest = trained(shuffled, steps)
    assert state["strategy"] == "iterator" and state["skip"] == 0
    assert batches(resumed(shuffled, state, files), 30) == rest


def test_a_second_resume_continues_from_the_first(steps=9):
    state, files, rest = trained(shuffled, steps)
    feed = resumed(shuffled, state, files)
    assert batches(feed, 4) == rest[:4]
    feed.trained(4)
    state, files = feed.state()
    assert state["batches"] == steps + 4
    assert batches(resumed(shuffled, state, files), 10) == rest[4:14]


@pytest.mark.parametrize("ahead", [True, False])
def test_batches_that_were_read_ahead_are_read_again(ahead):
    """As in a loop that is one XLA program."""

    def make():
        return (
            tf.data.Dataset.range(1000).shuffle(50, seed=1).repeat().batch(2, drop_remainder=True)
        )

    feed, taken, states = Feed(make(), ONE), [], []
    blocks = feed.input.source("loop")
    for steps in (30, 3, 900, 7):
        blocks.reads_ahead = ahead
        done = 0
        while done < steps:
            part = blocks.take(steps - done)
            taken += part.block.numpy()[part.start : part.start + part.steps].tolist()
            done += part.steps
        feed.trained(len(taken) - feed.batches)
        states.append(feed.state())
    for state, files in states:
        at = state["batches"]
        again = resumed(make, state, files)
        rest = batches(again, min(20, len(taken) - at))
        assert rest == taken[at : at + len(rest)]
    assert states[-1][0]["skip"] < 910  # from the state of a save before, not from 0


def test_states_are_kept_between_saves_if_data_are_read_ahead():
    """So that the first save of a run isn't that of its beginning."""

    def make():
        return tf.data.Dataset.range(2_000).shuffle(50, seed=1).repeat().batch(2)

    now = [0.0]
    feed, taken = Feed(make(), ONE, clock=lambda: now[0]), []
    blocks = feed.input.source("loop")
    blocks.reads_ahead = True
    while len(taken) < 4_000:
        part = blocks.take(100)
        taken += part.block.numpy()[part.start : part.start + part.steps].tolist()
        now[0] += 0.5
        feed.trained(len(taken) - feed.batches)
        feed.keep()
    state, files = feed.state()
    assert state["batches"] == 4_000
    # Ten seconds are 2,000 batches; two blocks of 400 may have been taken before they were needed.
    assert state["skip"] <= 2_000 + 2 * 400
    rest = []
    while len(rest) < 20:
        part = blocks.take(20 - len(rest))
        rest += part.block.numpy()[part.start : part.start + part.steps].tolist()
    assert batches(resumed(make, state, files), 20) == rest
    assert len(feed.resume_strategy._states._known) <= 3


def test_states_before_a_position():
    states = IteratorStates()
    states.add(10, {"a": b"10"})
    states.add(20, {"a": b"20"})
    assert states.at(9) == ({}, 9)
    assert states.at(15) == ({"a": b"10"}, 5)
    assert states.at(20) == ({"a": b"20"}, 0)


@pytest.mark.upstream
@pytest.mark.promise(19)
def test_upstream_has_no_checkpoint_of_a_distributed_iterator(replicas):
    iterator = iter(replicas(2).experimental_distribute_dataset(shuffled()))
    with pytest.raises(ValueError, match="expecting iterator to be a trackable object"):
        tf.train.Checkpoint(iterator=iterator)


@pytest.mark.promise(19)
def test_on_several_replicas_the_data_are_read_again(replicas, messages):
    strategy = replicas(2)
    state, files, rest = trained(shuffled, 13, strategy)
    assert (state["strategy"], files) == ("skip", {})
    feed = resumed(shuffled, state, files, strategy)
    assert batches(feed, 30) == rest
    assert messages == [
        "reading past 13 batches, up to the checkpoint's position; it is cut over several "
        "replicas. "
        "tfloss.data.Source needs no reading"
    ]


def test_data_that_are_not_repeatable_are_reported(replicas, messages):
    strategy = replicas(2)

    def make():
        rng = np.random.default_rng()  # of another seed each time
        return tf.data.Dataset.from_tensor_slices(rng.integers(0, 10**6, 100)).batch(2)

    state, files, _ = trained(make, 5, strategy)
    resumed(make, state, files, strategy)
    assert len(messages) == 2
    assert (
        "other batches than when training began" in messages[1]
        and "a seed on every shuffle" in messages[1]
    )


def test_data_without_a_state_to_save_are_read_again(messages):
    def make():
        signature = tf.TensorSpec([], tf.int64)
        data = tf.data.Dataset.from_generator(lambda: iter(range(100)), output_signature=signature)
        return data.batch(2)

    state, files, rest = trained(make, 5)
    assert (state["strategy"], files) == ("skip", {})
    assert batches(resumed(make, state, files), 10) == rest[:10]
    assert messages[0].startswith("reading past 5 batches")
    assert "can hold the state of Python code (" in messages[0]
    assert "PyFunc" in iterator_files(iter(make()))


def test_a_state_that_is_too_large_is_not_kept(monkeypatch):
    monkeypatch.setattr("tfloss.data.resume_strategies.MAX_STATE_BYTES", 1000)
    state, files, rest = trained(shuffled, 5)
    assert (state["strategy"], files) == ("skip", {})
    assert batches(resumed(shuffled, state, files), 30) == rest


def test_the_iterator_returns_to_a_snapshot(monkeypatch):
    feed = Feed(shuffled(), ONE)
    batches(feed, 3)
    go_back = feed.snapshot()
    first = batches(feed, 5)
    go_back()
    assert batches(feed, 5) == first

    monkeypatch.setattr("tfloss.data.resume_strategies.MAX_STATE_BYTES", 1000)
    assert feed.snapshot() is None
    assert feed.resume_strategy.name == "iterator"  # a checkpoint may still hold it


def test_a_large_state_is_kept_if_nothing_else_is_exact(monkeypatch):
    monkeypatch.setattr("tfloss.data.resume_strategies.MAX_STATE_BYTES", 1000)

    def make():
        tf.random.set_seed(None)
        return shuffled(seed=None)

    tf.random.set_seed(None)
    state, files, rest = trained(make, 5)
    assert state["strategy"] == "iterator"
    assert batches(resumed(make, state, files), 5) == rest[:5]


def test_passes_over_a_shuffled_set_are_counted(replicas):
    """Its second pass has another order than its first."""
    strategy = replicas(2)

    def make():
        return tf.data.Dataset.range(20).shuffle(20, seed=1).batch(2)

    feed = Feed(make(), strategy)
    first = batches(feed, 10)
    feed.restart()
    second = batches(feed, 10)
    assert sorted(first) != sorted(second)
    feed.restart()
    batches(feed, 4)
    feed.trained(4)
    state, files = feed.state()
    assert (state["passes"], state["batches"]) == (2, 4)
    rest = batches(feed, 6)
    again = resumed(make, state, files, strategy)
    assert batches(again, 6) == rest
    again.restart()
    feed.restart()
    assert batches(again, 10) == batches(feed, 10)


def test_a_source_starts_from_the_beginning_after_a_resumed_pass():
    def make():
        return Source(np.arange(20), batch_size=2, epochs=1)

    feed = Feed(make(), ONE)
    whole = batches(feed, 10)
    feed = Feed(make(), ONE)
    feed.batches = 3
    state, files = feed.state()
    again = resumed(make, state, files)
    assert batches(again, 7) == whole[3:]
    again.restart()
    assert batches(again, 10) == whole


def test_an_unseeded_shuffle_continues_in_a_loop_that_reads_ahead():
    def make():
        return tf.data.Dataset.range(400).shuffle(400).batch(2, drop_remainder=True)

    tf.random.set_seed(None)
    feed = Feed(make(), ONE)
    blocks, taken = feed.input.source("loop"), []
    blocks.reads_ahead = True
    while len(taken) < 60:
        part = blocks.take(60 - len(taken))
        if part.block is None:
            taken.append(part.batches[0].numpy().tolist())
        else:
            taken += part.block.numpy()[part.start : part.start + part.steps].tolist()
    feed.trained(60)
    state, files = feed.state()
    rest = batches(resumed(make, state, files), 140)
    assert sorted(np.concatenate([*taken, *rest])) == list(range(400))


def test_other_data_start_from_the_beginning_and_the_differences_are_logged(messages):
    state, files, _ = trained(shuffled, 5)
    feed = resumed(lambda: shuffled(batch=4), state, files)
    assert feed.batches == 0
    assert batches(feed, 3) == batches(Feed(shuffled(batch=4), ONE), 3)
    assert "start from the beginning" in messages[0] and "batch_size 2 -> 4" in messages[0]


def test_data_that_end_before_the_position_are_refused():
    def make(count=40):
        signature = tf.TensorSpec([None], tf.int64)
        return tf.data.Dataset.from_generator(
            lambda: iter([[i] for i in range(count)]), output_signature=signature
        )

    state, files, _ = trained(make, 10)
    with pytest.raises(DataError, match="at batch 10 of the data, but the data end earlier"):
        resumed(lambda: make(4), state, files)


def test_irreproducible_data_are_reported_before_training(replicas):
    ordered = tf.data.Dataset.range(10).batch(2)
    unordered = ordered.map(lambda i: i, num_parallel_calls=2, deterministic=False)
    with pytest.warns(UserWarning, match="deterministic=False"):
        Feed(unordered, ONE).warn()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Feed(ordered, ONE).warn()
        Feed(ordered, replicas(2)).warn()
