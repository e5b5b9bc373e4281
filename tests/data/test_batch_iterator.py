"""Batches come in order, and an error that was met before comes in its place."""

import pytest

from tfloss.data.batch_iterator import BatchIterator


class Failure(Exception):
    pass


def _read(reader):
    """Everything that comes until the end: batches and errors."""
    found = []
    while True:
        try:
            found.append(reader.next())
        except StopIteration:
            return found
        except Failure as error:
            found.append(error)


def _failing(batches, at):
    """A generator that fails once, instead of giving a batch; it can be continued."""

    class Failing:
        def __init__(self):
            self.left = list(batches)

        def __next__(self):
            if not self.left:
                raise StopIteration
            batch = self.left.pop(0)
            if batch == at:
                raise again
            return batch

    again = Failure("again")
    return Failing(), again


def test_batches_come_in_order():
    reader = BatchIterator(iter([1, 2, 3]))
    assert not reader.error_pending
    assert _read(reader) == [1, 2, 3]


def test_a_postponed_error_comes_before_the_next_batch():
    reader, error = BatchIterator(iter([1, 2])), Failure()
    assert reader.next() == 1
    reader.postpone(error)
    assert reader.error_pending
    assert _read(reader) == [error, 2]
    assert not reader.error_pending


def test_an_error_that_occurs_again_comes_once():
    reader = BatchIterator(iter([]))
    iterator, again = _failing([4, 5, 6, 7], at=6)
    reader.read_again(iterator, Failure("first"), most=10)
    assert reader.iterator is iterator and reader.error_pending
    assert _read(reader) == [4, 5, again, 7]
    assert not reader.error_pending


def test_an_error_that_does_not_occur_again_comes_behind_the_last_batch_it_can_concern():
    reader, error = BatchIterator(iter([])), Failure()
    reader.read_again(iter([4, 5, 6, 7]), error, most=3)
    assert _read(reader) == [4, 5, 6, error, 7]


def test_an_error_that_does_not_occur_again_comes_before_the_end():
    reader, error = BatchIterator(iter([])), Failure()
    reader.read_again(iter([4]), error, most=3)
    assert reader.next() == 4
    with pytest.raises(Failure) as e:
        reader.next()
    assert e.value is error
    with pytest.raises(StopIteration):
        reader.next()
