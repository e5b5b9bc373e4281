"""One block is read ahead; reading can be paused and resumed, and stops at an error."""

from pathlib import Path

import pytest
import tensorflow as tf

from tfloss.data.read_ahead import ReadAhead


@pytest.fixture(autouse=True)
def _no_time_limit(monkeypatch):
    """On a busy machine a block would be cut short by the clock."""
    monkeypatch.setattr("tfloss.data.pull_block.MAX_SECONDS", float("inf"))


def _read_ahead(dataset, size):
    iterator = iter(dataset)
    return ReadAhead(iterator, next(iterator), size), iterator


def _numbers(pulled):
    return pulled.block.numpy()[: pulled.count].tolist()


def test_blocks_come_in_order_to_the_end():
    ahead, _ = _read_ahead(tf.data.Dataset.range(10), 4)
    found = [ahead.next() for _ in range(3)]
    assert [_numbers(one) for one in found] == [[1, 2, 3, 4], [5, 6, 7, 8], [9]]
    assert [one.ended for one in found] == [False, False, True]
    assert all(one and one.remainder is None for one in found)


def test_a_smaller_batch_ends_its_block():
    data = tf.data.Dataset.range(7).batch(2).repeat(2)
    ahead, _ = _read_ahead(data, 5)
    first, second = ahead.next(), ahead.next()
    assert _numbers(first) == [[2, 3], [4, 5]]
    assert first.remainder.numpy().tolist() == [6]
    assert _numbers(second) == [[0, 1], [2, 3], [4, 5]]
    assert second.remainder.numpy().tolist() == [6]


def test_while_it_is_paused_others_may_use_the_iterator():
    ahead, iterator = _read_ahead(tf.data.Dataset.range(10_000), 4)
    seen = _numbers(ahead.next())
    ahead.pause()
    while pulled := ahead.next():
        seen += _numbers(pulled)
    assert seen == list(range(1, len(seen) + 1))
    assert int(next(iterator)) == len(seen) + 1
    ahead.resume()
    while not (pulled := ahead.next()):
        pass
    assert _numbers(pulled) == list(range(len(seen) + 2, len(seen) + 6))


@pytest.mark.parametrize("endless", [True, False])
def test_at_an_error_reading_stops_and_the_batches_before_it_remain(endless):
    def read(i):
        text = tf.where(tf.equal(i, 7), "corrupt", tf.strings.as_string(i))
        return tf.strings.to_number(text, tf.int64)

    iterator = iter(tf.data.Dataset.range(20).map(read))
    ahead = ReadAhead(iterator, next(iterator), 4, endless=endless)
    assert _numbers(ahead.next()) == [1, 2, 3, 4]
    with pytest.raises(tf.errors.InvalidArgumentError, match="corrupt"):
        ahead.next()
    block, count = ahead.salvage()
    assert count == 2 and block.numpy().tolist() == [5, 6, 0, 0]
    assert not ahead.next()
    assert int(next(iterator)) == 8


def test_it_takes_no_memory_before_it_reads():
    """TensorFlow computes constants of up to 10 MB ahead, and keeps several copies of them."""

    def resident_bytes():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    data = tf.data.Dataset.from_tensors(tf.zeros([25_000])).repeat()  # 0.1 MB
    iterator = iter(data)
    template = next(iterator)
    ReadAhead(iterator, template, 100).next()  # what a first one leaves behind doesn't count
    before = resident_bytes()
    kept = [ReadAhead(iterator, template, 100, endless=True) for _ in range(2)]
    assert resident_bytes() - before < 2 * 10e6 and len(kept) == 2  # 78 MB before
