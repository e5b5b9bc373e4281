"""No batch is taken twice or left out when the mode changes."""

import numpy as np
import pytest
import tensorflow as tf

from tfloss.data.engine_input import EngineInput
from tfloss.data.stacked_batches import BatchStacker


def opened():
    given = EngineInput(lambda iterator: BatchStacker(iterator, 1))
    given.open(iter(tf.data.Dataset.range(100_000)))
    return given


def single(source):
    batch = source.take_step()[0] if isinstance(source, BatchStacker) else next(source)
    return int(np.asarray(batch))


def stacked(stacker, steps):
    taken = []
    while len(taken) < steps:
        part = stacker.take(steps - len(taken))
        if part.block is None:
            taken += [int(one) for one in part.batches]
        else:
            taken += part.block.numpy()[part.start : part.start + part.steps].tolist()
    return taken


def test_modes_take_turns_on_one_iterator():
    given, taken = opened(), []
    taken.append(single(given.source("graph")))
    taken += stacked(given.source("loop"), 5)
    taken += [single(given.source("step")) for _ in range(3)]
    taken += stacked(given.source("loop", read_ahead=True), 20)
    assert given.reads_ahead
    taken += [single(given.source("graph")) for _ in range(3)]  # of what was read ahead
    assert not given.reads_ahead and given.source("graph") is given.stacker
    taken += stacked(given.source("loop"), 400)
    assert taken == list(range(len(taken)))


def test_a_loop_that_loses_gives_the_iterator_back():
    given, taken = opened(), []
    taken += stacked(given.source("loop", read_ahead=True), 20)
    while given.source("graph") is not given.iterator:
        taken.append(single(given.source("graph")))
    assert not given.reads_ahead
    taken.append(single(given.source("graph")))
    assert taken == list(range(len(taken)))
    taken += stacked(given.source("loop", read_ahead=True), 500)  # and takes it again
    assert given.reads_ahead and taken == list(range(len(taken)))


def test_data_that_end_while_the_loop_is_tried_end_for_the_graph():
    given = EngineInput(lambda iterator: BatchStacker(iterator, 1))
    given.open(iter(tf.data.Dataset.range(10)))
    taken = stacked(given.source("loop", read_ahead=True), 4)
    with pytest.raises(StopIteration):
        while True:
            taken.append(single(given.source("graph")))
    assert taken == list(range(10))


def test_an_iterator_that_is_not_taken_over_stays_itself():
    given = opened()
    assert given.source("graph") is given.iterator
    with given.paused() as ahead:
        assert ahead == 0
    given.drop_step()
    assert not given.reads_ahead


def test_another_iterator_drops_what_is_pending():
    given = opened()
    stacked(given.source("loop", read_ahead=True), 3)
    given.open(iter(tf.data.Dataset.range(500, 510)))
    assert single(given.source("graph")) == 500


def test_whose_error_it_is():
    given = opened()
    error = tf.errors.InvalidArgumentError(None, None, "[[{{node IteratorGetNext}}]]")
    assert given.failed(error)
    assert not given.failed(tf.errors.InvalidArgumentError(None, None, "[[{{node MatMul}}]]"))
